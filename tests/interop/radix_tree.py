"""Run by the interpreter of the real Dynamo: its RadixTree does what stdin asks.

Stdin has a JSON list per line: ["apply", worker id, KV event] or ["match", [hash of each block's tokens]]. Stdout has a
line for each: whether the event could be applied, or [[worker id, dp_rank, num_blocks], ...] in ascending order.
"""

# mypy: ignore-errors
# Its imports are of the other interpreter's ai-dynamo, not of ours.

import json
import sys

from dynamo.llm import RadixTree


def apply(tree, worker_id, event):
    try:
        tree.apply_event(worker_id, json.dumps(event).encode())
    except RuntimeError:
        return False
    return True


def match(tree, tokens_hashes):
    scores = tree.find_matches(tokens_hashes).scores
    return sorted([*rank, num_blocks] for rank, num_blocks in scores.items())


if __name__ == "__main__":
    tree = RadixTree()
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        print(json.dumps({"apply": apply, "match": match}[verb](tree, *arguments)), flush=True)
