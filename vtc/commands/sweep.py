"""`vtc sweep`: the long computation behind notebooks 02 and 05; stop and start it again as you like."""

from __future__ import annotations

import argparse
from dataclasses import replace

from vtc import InputError, compressors, profiles
from vtc.commands import add_profile
from vtc.experiments.sweep import STEM, ZOO, cells, members, table, variant_cells, zoo
from vtc.profiles import Profile
from vtc.training import stages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`vtc sweep`: the long computation behind notebooks 02 and 05; stop and start it again as you like."""
    add_profile(parser)
    add, sets = parser.add_argument, ",".join(compressors.sets())
    zoo = f"compressors of notebook 05 in place of the sweep: some of {sets}, or names such as lookup,quecc"
    add("--seeds", default="", help="such as 0,1,2 (default: those that the recorded rows hold)")
    add("--zoo", nargs="?", const="profile", metavar="SETS", help=f"{zoo} (default: the profile's sets)")
    kinds = "twin (the flipped world), doubled (all stages twice as long), twice or fourfold (only stages"
    more = "with images, QueCC and lookup); three seeds"
    variants = [stem.partition("_")[2] for stem in profiles.SMOKE.variants]
    add("--variant", choices=variants, help=f"a variant in place of the sweep: {kinds} {more}")
    add("--sizes", default="", help="LLMs of the zoo, such as d16,d64 (default: the profile's zoo LLM)")
    add("--V", default="", help="such as 1,4 (default: the profile's)")


def asked_for(args: argparse.Namespace) -> Profile:
    """The profile with the seeds and the sets of compressors of these arguments in place of its own."""
    p = profiles.get(args.profile)
    seeds = profiles.numbers(args.seeds, "seeds") or p.recorded_seeds
    p = replace(p, seeds=seeds, zoo_V=p.recorded_zoo_V)
    if not args.zoo:
        return p
    sets = p.zoo if args.zoo == "profile" else tuple(args.zoo.split(","))
    for name in sets:
        if name not in compressors.sets() and name not in compressors.names():
            known = ", ".join(compressors.names())
            sets = ", ".join(compressors.sets())
            raise InputError(f"--zoo {name}: choose some of {sets}, or names of {known}")
    V = profiles.numbers(args.V, "V")
    for v in V:
        if not any(v in compressors.possible(one, p.g) for name in sets for one in members(name)):
            raise InputError(f"--V {v}: no compressor of these sets can give it on a {p.g} x {p.g} grid")
    return replace(p, zoo=sets, zoo_V=V or p.zoo_V)


def main(args: argparse.Namespace) -> int:
    """Measure what is missing, and say how many rows there are."""
    p = asked_for(args)
    if args.variant:
        return _variant(p, next(stem for stem in p.variants if stem.endswith(f"_{args.variant}")))
    sizes = tuple(args.sizes.split(",")) if args.sizes else ()
    if sizes and not args.zoo:
        raise InputError("--sizes is for compressors: give --zoo too")
    cases = zoo(p, sizes) if args.zoo else cells(p, profiles.numbers(args.V, "V"))
    for case in cases:
        stages.check(p, stages.Case(**case))
    rows = table(p, cases, ZOO if args.zoo else STEM)
    print(f"{len(rows)} rows; `vtc record --profile {p.name}` takes them into results/{p.name}/")
    return 0


def _variant(p: Profile, stem: str) -> int:
    """Measure a variant of the profile, with the first three seeds."""
    p = replace(p, seeds=p.seeds[:3])
    rows = table(p.variants[stem], variant_cells(p, stem), stem)
    print(f"{len(rows)} rows of {stem}; `vtc record --profile {p.name}` takes them into results/{p.name}/")
    return 0
