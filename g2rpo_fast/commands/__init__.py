"""The commands of `g2rpo-fast`, a module each with a function `run(words) -> exit status`.

What a module imports is loaded when its command runs: usage and mistyped commands are answered at once.
"""

COMMANDS = {
    "train": "[CONFIG] [--method NAME] [--section.key value ...]",
    "methods": "[NAME] [--json]",
    "doctor": "[--json]",
    "metrics": "[NAME]",
    "report": "RUN [RUN ...] [--out FILE.html] [--live]",
}
"""Name of its module -> what may follow it."""
