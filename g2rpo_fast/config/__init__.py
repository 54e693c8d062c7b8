"""The configuration: task TOML, method TOML, command line, in that order."""

from g2rpo_fast.config.choice import NONE_WORDS, PIECES
from g2rpo_fast.config.read import EMBEDDED, config_from_dict, load_config
from g2rpo_fast.config.renamed import renamed
from g2rpo_fast.config.sections import Config, RunConfig, plain, section_types
from g2rpo_fast.usage import preset_names

__all__ = [
    "EMBEDDED",
    "NONE_WORDS",
    "PIECES",
    "Config",
    "RunConfig",
    "config_from_dict",
    "load_config",
    "plain",
    "preset_names",
    "renamed",
    "section_types",
]
