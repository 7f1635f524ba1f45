"""`edgecl advise`: what could be better, and how sure that is."""
from __future__ import annotations

import argparse

from edgecl.commands import asked, print_json


def advise(options: argparse.Namespace) -> None:
    """Print the advice, a sentence per line."""
    found = asked(options, "advise", lambda learner: learner.advise().to_json())
    if options.json:
        print_json(found)
        return
    for sentence in found["advice"]:
        print(sentence)
