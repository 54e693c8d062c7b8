"""The commands of `g2rpo-fast`, a module each with a function `run(words) -> exit status`.

What a module imports is loaded when its command runs: usage and mistyped commands are answered at once.
"""

COMMANDS = {
    "train": "[CONFIG] [--plan] [--method NAME] [--section.key value ...]",
    "eval": "MODEL DATA [--samples N] [--out FILE] [--json] [--section.key value ...]",
    "sample": "MODEL (--prompt TEXT | --file FILE) [--guidance-tokens N] [--section.key value ...]",
    "export": "RUN[:STEP] DIR [--dtype TYPE] [--push REPO]",
    "plan": "[CONFIG] [--seconds S] [--response-tokens N] [--json] [options of train]",
    "methods": "[NAME] [--json]",
    "doctor": "[--json]",
    "metrics": "[NAME]",
    "report": "RUN [RUN ...] [--out FILE.html] [--live]",
}
"""Name of its module -> what may follow it."""
