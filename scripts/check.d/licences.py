#!/usr/bin/env python3
"""Reads `cargo metadata` on standard input; fails if a crate of ours needs a licence the list does not allow.

`cargo deny check licenses` says the same with more detail; this needs nothing installed.
"""
import json
import re
import sys
import tomllib

allowed = set(tomllib.load(open(sys.argv[1], "rb"))["licenses"]["allow"])


def permits(expression):
    """SPDX expression (AND binds tighter than OR; `/` is cargo's old OR): may it be used under the allowed ones?"""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def alternatives():
        good = together()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            good = together() or good
        return good

    def together():
        good = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            good = one() and good
        return good

    def one():
        token = tokens.pop(0)
        if token == "(":
            good = alternatives()
            tokens.pop(0)
            return good
        if tokens and tokens[0] == "WITH":
            token = f"{token} WITH {tokens[1]}"
            del tokens[:2]
        return token in allowed

    return alternatives()


metadata = json.load(sys.stdin)
used = {node["id"] for node in metadata["resolve"]["nodes"]}
bad = [
    f"{package['name']} {package['version']}: {package.get('license') or 'no licence'}"
    for package in metadata["packages"]
    if package["id"] in used and not permits(package.get("license") or "none")
]
print("\n".join(bad) or f"  {len(used)} crates, all permissive")
sys.exit(bool(bad))
