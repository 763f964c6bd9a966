"""The words of GridQA's second world: what is on an image, what is asked, what is answered."""

from __future__ import annotations

LANDS = tuple(
    "oslo lima cairo delhi paris quito seoul tunis accra hanoi minsk sofia turin basel lyon kyoto "
    "perth dakar lagos milan genoa essen ghent leeds malmo bergen porto nice pisa riga vilna zurich".split()
)  # a ground of one hue and one texture each
DIGITS = tuple("0123456789")
X, Y = (tuple(f"{axis}{i}" for i in range(12)) for axis in "xy")  # where a mark's centre stands, 12 x 12
ENTITIES = tuple(
    "ant ape asp bat bear bee boar bug bull calf carp cat chick clam cob cod colt cow crab crane crow "
    "cub dace deer doe dog dove duck eel elk emu ewe fawn finch flea fly foal fox frog gnat gnu goat "
    "goose grouse gull hare hart hawk hen hog hound ibex ibis jay kid kite koi krill lamb lark lion "
    "lynx mink mole moose moth mouse mule newt orca owl ox perch pig pike pony prawn pug puma quail "
    "ram rat raven ray roach roe rook seal shark sheep shrew shrimp skate skunk sloth slug snail "
    "snake snipe sole sow squid stag stork swan tapir teal tern tick tiger toad trout tuna turkey "
    "vole wasp whale wolf worm wren yak zebra bison camel eagle falcon gecko heron ".split()
)
QUALITIES = tuple(
    "big small old new hot cold wet dry raw ripe soft hard thin thick light dark "
    "sweet sour sharp blunt round flat long short loud quiet clean dusty smooth rough rare plainest".split()
)
THINGS = tuple(
    "apple bell boat book bow box bread brick broom brush cake candle cap chair clock coat "
    "coin cup door drum egg fan fig flag flute fork glass glove hat horn jar key".split()
)
ASKED = ("read", "land", "whence", "?")
BINDING = ("count", "more", "than", "right", "10", "11", "12", "yes", "no")
WORDS = (*LANDS, *DIGITS, *X, *Y, *ENTITIES, *QUALITIES, *THINGS, *ASKED, *BINDING)
