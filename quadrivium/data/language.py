"""What is said about machines, in English and in Japanese: openings, accounts, portraits, things to know.

Four registers, kept apart because the experiment rests on it:

    opening    how things stand before anything moves; never a word about what will happen
    portrait   what one or two kinds look like
    account    what happened, beginning to end
    knowledge  what happens whenever two kinds meet, stated or asked and answered

``OUTCOME_WORDS`` is the closed list of words by which an outcome, a movement or a weight can be told. Openings and
portraits use none of them and every account and every piece of knowledge uses at least one: the audit of a world counts
on it, and tests hold it.

A form is a line with slots: ``{a}`` the first piece ("a zopeka"), ``{ta}`` the same, known ("the zopeka"), ``{na}`` its
bare name, ``{b}``, ``{tb}``, ``{nb}`` the second; ``{A}``, ``{TA}``, ... the same at the head of a sentence; ``{left}``,
``{right}`` sides as drawn; ``[x|y]`` one of several wordings.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from random import Random
from typing import Literal

from quadrivium.data.machine import Kind, MachineSpec, Scene

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = ("en", "ja")

# ---- names --------------------------------------------------------------------------------------------------------

_ROWS = {"k": "カキクケコ", "s": "サ_スセソ", "t": "タ__テト", "n": "ナニヌネノ", "m": "マミムメモ", "r": "ラリルレロ", "g": "ガギグゲゴ",
         "z": "ザ_ズゼゾ", "d": "ダ__デド", "b": "バビブベボ", "p": "パピプペポ"}  # fmt: skip
SYLLABLES: dict[str, str] = {
    c + v: kana for c, row in _ROWS.items() for v, kana in zip("aiueo", row, strict=True) if kana != "_"
}


def invent_names(rng: Random, count: int) -> list[tuple[str, str]]:
    """``count`` invented words (Latin, katakana) of three syllables, any two different in at least two of them; no domino."""
    heads = [s for s in SYLLABLES if s[0] in "zpbgdrm"]  # sounds that few words of either language begin with
    names: list[tuple[str, ...]] = []
    while len(names) < count:
        name = (rng.choice(heads), *rng.sample(list(SYLLABLES), 2))
        if (
            len(set(name)) == 3
            and name != ("do", "mi", "no")
            and all(sum(a != b for a, b in zip(name, other, strict=True)) >= 2 for other in names)
        ):
            names.append(name)
    return [("".join(name), "".join(SYLLABLES[s] for s in name)) for name in names]


# ---- looks --------------------------------------------------------------------------------------------------------

_COLOUR_JA = {"red": "赤い", "orange": "オレンジ色の", "yellow": "黄色い", "green": "緑の", "blue": "青い", "purple": "紫の",
              "pink": "ピンクの", "black": "黒い"}  # fmt: skip
_OUTLINE_EN = {"round": "round", "square": "square", "diamond": "diamond-shaped", "triangle": "three-cornered"}
_OUTLINE_JA = {"round": "丸", "square": "四角", "diamond": "ひし形", "triangle": "三角"}
_PATTERN_EN = {
    "plain": ("all one colour", "without any marking", "quite plain"),
    "banded": ("with a band across the middle", "with one broad stripe", "striped once across"),
    "spotted": ("with a spot in the middle", "with one big dot", "with a dot at its centre"),
    "halved": ("with one half pale", "coloured on one side only", "half coloured and half pale"),
    "quartered": ("chequered in four", "quartered like a flag", "with four chequered quarters"),
}
_PATTERN_JA = {
    "plain": ("無地の", "模様のない"),
    "banded": ("帯が一本入った", "横じま一本の"),
    "spotted": ("真ん中に点のある", "大きな点がひとつある"),
    "halved": ("半分だけ色のついた", "左右で色の分かれた"),
    "quartered": ("市松模様の", "四つに塗り分けられた"),
}


def look(kind: Kind, rng: Random, language: Language) -> str:
    """A kind's look as a phrase: "round and red, with a spot in the middle"; 「真ん中に点のある赤い丸」."""
    if language == "en":
        pattern = rng.choice(_PATTERN_EN[kind.pattern])
        shape, colour = _OUTLINE_EN[kind.outline], kind.colour
        return rng.choice((f"{shape} and {colour}, {pattern}", f"{colour} and {shape}, {pattern}"))
    return rng.choice(_PATTERN_JA[kind.pattern]) + _COLOUR_JA[kind.colour] + _OUTLINE_JA[kind.outline]


# ---- forms --------------------------------------------------------------------------------------------------------

OPENINGS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "ramp": (
            "{A} [waits|sits|stands] at the top of a ramp, and {b} [stands|waits] on the flat [below|at its foot].",
            "At the [top|upper end] of a ramp [sits|waits] {a}; on the flat in front of it [stands|waits] {b}.",
            "{B} [stands|is placed|waits] on the flat, and above it, at the top of the ramp, [sits|waits] {a}.",
            "Here is a ramp with {a} at its top, and {b} in its way on the flat.",
            "Someone has put {a} at the top of the ramp and {b} [on the flat|a little way from its foot].",
        ),
        "seesaw": (
            "{A} sits on the {left} end of a seesaw and {b} on the {right} end.",
            "A seesaw: {a} on the {left}, {b} on the {right}.",
            "On the two ends of a plank [sit|are seated] {a}, {left}, and {b}, {right}.",
            "Facing each other on a seesaw [sit|wait] {a} and {b}, {a2} on the {left} side.",
            "With {b} at the {right} end of the plank and {a} at the {left}, a hand is still on the middle of the seesaw.",
        ),
        "catapult": (
            "{A} is poised above the high arm of a catapult, and {b} sits in its scoop, in front of a fence.",
            "In the scoop of a catapult sits {b}; above the other arm [waits|is poised] {a}. Beyond the scoop there is a fence.",
            "A catapult faces a fence: {b} in the scoop, {a} [waiting|poised] overhead.",
            "High over the free arm of the catapult [waits|hangs] {a}, while {b} lies in the scoop.",
            "Before a fence stands a catapult loaded with {b}, and {a} is hung above its arm.",
        ),
        "dominoes": (
            "{A} [waits|sits] at the top of a ramp that leads to two dominoes, and {b} stands on the shelf behind them.",
            "Between {a} on its ramp and {b} near the shelf's edge stand two dominoes.",
            "Two dominoes stand on a shelf, {b} behind them; at the top of the ramp before them [sits|waits] {a}.",
            "On a shelf, from the {left}: {a} on a ramp, two dominoes, and {b}.",
            "Past the dominoes, near the edge of the shelf, is {b}. On the ramp in front of them is {a}.",
        ),
        "table": (
            "{B} [sits|stands] on a table set upon one coil, and {a} is poised above the free half.",
            "A table stands on a single coil. {B} is on it, and {a} hangs above.",
            "Above a small table on a coil, where {b} already sits, [waits|is poised] {a}.",
            "On the {left} half of a table set upon a coil sits {b}; over the {right} half hangs {a}.",
            "There is room for one more beside {b} on the coil table, and {a} [waits|is poised] just above.",
        ),
    },
    "ja": {
        "ramp": (
            "坂の[上|てっぺん]に{a}がいて、坂の下の平らなところに{b}が[立って|待って]いる。",
            "{b}が[平らなところ|坂の先]に置かれ、坂の上では{a}が待っている。",
            "坂のてっぺんに置かれたのは{a}、その先の床に置かれたのは{b}だ。",
            "{a}は坂の上、{b}は坂の下。[まだ手は離されていない。|これから始まるところだ。]",
            "坂をはさんで、高いところに{a}、低いところに{b}がいる。",
        ),
        "seesaw": (
            "シーソーの{left}端に{a}、{right}端に{b}が[のっている|座っている]。",
            "{a}がシーソーの{left}に、{b}が{right}に[のっている|乗せられている]。",
            "板の両端で向かい合うのは、{left}の{a}と{right}の{b}だ。",
            "シーソーの真ん中にはまだ手がそえられていて、{left}に{a}、{right}に{b}がいる。",
            "{right}端に{b}、{left}端に{a}をのせたシーソーがある。",
        ),
        "catapult": (
            "投石機のさじに{b}がのり、[もう一方の腕の真上|反対の腕の上の空中]に{a}が構えている。前には柵がある。",
            "柵の前に投石機がある。さじには{b}、腕の上の高いところには{a}がいる。",
            "{a}が投石機の腕の真上で待ち、さじの中には{b}が[いる|座っている]。",
            "さじに入っているのは{b}、その反対側の高いところに吊られているのは{a}だ。",
            "投石機に{b}がのせてある。{a}は腕の上に吊るしてある。",
        ),
        "dominoes": (
            "坂の上に{a}、その先にドミノが二枚、棚の端の近くに{b}が[いる|立っている]。",
            "棚の上に、{left}から{a}の坂、二枚のドミノ、{b}の順に並んでいる。",
            "二枚のドミノの向こうに{b}が立ち、手前の坂の上では{a}が待っている。",
            "{a}と{b}のあいだに、ドミノが二枚立ててある。{a}は坂の上だ。",
            "棚の端の近くに{b}。その前にドミノが二枚。坂のてっぺんに{a}。",
        ),
        "table": (
            "一本のばねにのった台の上に{b}がいて、空いている半分の真上に{a}が[構えている|待っている]。",
            "ばねの台には{b}がすでにのっている。その隣の空中に{a}が吊られている。",
            "台は一本のばねの上にある。{left}半分に{b}、{right}半分の真上に{a}。",
            "{a}が、{b}ののったばねの台の上の空中で待っている。",
            "ばねの台に座っている{b}の隣は空いていて、その上に{a}が吊るしてある。",
        ),
    },
}  # fmt: skip

FINISH_OPENINGS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "bell": ("A bell [stands|waits] [nearby|close by|within reach].", "There is a bell, too.", "[Close by|Not far off] stands a brass bell."),
        "bucket": ("A bucket stands [ready|beneath].", "There is a bucket [below|at the end].", "At the end waits an open bucket."),
        "domino bell": (
            "Farther along stands a domino, and behind it a bell.",
            "Beyond them there is one domino, and then a bell.",
            "A single domino and a bell complete the machine.",
        ),
    },
    "ja": {
        "bell": ("そばにベルが[ある|置いてある]。", "ベルもひとつ置いてある。", "近くには真ちゅうのベルがある。"),
        "bucket": ("下にはバケツが置いてある。", "終わりのところにバケツがある。", "口の開いたバケツも用意してある。"),
        "domino bell": (
            "その先にドミノが一枚、さらに先にベルがある。",
            "奥にはドミノが一枚とベルがひとつ並んでいる。",
            "仕掛けの終わりは、一枚のドミノとベルだ。",
        ),
    },
}  # fmt: skip

LOOK_SENTENCES: dict[Language, tuple[str, ...]] = {
    "en": ("{TA} is {look}.", "One can tell {ta} at once: {look}.", "({TA}: {look}.)"),
    "ja": ("{a}は{look}だ。", "{look}なのが{a}だ。", "{a}というのは、{look}のことだ。"),
}

PORTRAITS: dict[Language, tuple[str, ...]] = {
    "en": (
        "{A}: {look}.",
        "This is {a}. It is {look}.",
        "{A} is {look}.",
        "[Here|On the ground] stands {a}, {look}.",
        "What is {look}? {A}.",
        "The picture shows {a}, {look}.",
        "Anything {look} is called {a}.",
    ),
    "ja": (
        "{a}：{look}。",
        "これは{a}。{look}だ。",
        "{a}は{look}だ。",
        "{look}、それが{a}だ。",
        "床に{a}が置いてある。{look}だ。",
        "絵の中に{a}がいる。{look}である。",
        "{look}のことを{a}という。",
    ),
}

PAIRS: dict[Language, tuple[str, ...]] = {
    "en": (
        "{A} on the {left} and {b} on the {right}.",
        "{A} and {b}, side by side; {ta} is {look}.",
        "To the {right} of {a} stands {b}. {TB} is {lookb}.",
        "Two pieces: {a}, {look}, and {b}, {lookb}.",
    ),
    "ja": (
        "{left}に{a}、{right}に{b}。",
        "{a}と{b}が並んでいる。{a}は{look}だ。",
        "{a}の{right}に{b}がいる。{b}は{lookb}だ。",
        "ふたつある。{a}は{look}、{b}は{lookb}だ。",
    ),
}

ACTIONS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "ramp": ("{TA} [slides|glides] down and [hits|strikes|runs into] {tb}", "Let go, {ta} [comes sliding|slides] down into {tb}", "Down slides {ta}, and [hits|strikes] {tb}"),
        "seesaw": ("The hand lets go", "Both are let go at once", "The plank is set free"),
        "catapult": ("{TA} [drops|falls] on the arm", "Down [drops|comes] {ta} on the arm", "The string is cut and {ta} [drops|falls]"),
        "dominoes": ("{TA} slides down into the first domino", "Down the ramp slides {ta} and hits the dominoes", "Let go, {ta} runs into the row"),
        "table": ("{TA} drops on the table beside {tb}", "Down comes {ta} beside {tb}", "{TA} is let fall on the free half"),
    },
    "ja": {
        "ramp": ("{a}が坂を[滑りおり|滑ってき]て{b}にぶつかる", "手を離すと{a}が滑りおり、{b}に当たる", "{a}は坂を滑って{b}にぶつかる"),
        "seesaw": ("手が離される", "板が自由になる", "二つ同時に放される"),
        "catapult": ("{a}が腕の上に落ちる", "糸が切られ、{a}が落ちる", "{a}が腕をめがけて落ちてくる"),
        "dominoes": ("{a}が坂を滑りおりて一枚目のドミノに当たる", "{a}が滑ってきてドミノの列にぶつかる", "手を離すと{a}が列に突っこむ"),
        "table": ("{a}が{b}の隣に落ちる", "{a}が台の空いた半分に落ちてくる", "糸が切られ、{a}が台にのる"),
    },
}  # fmt: skip

# Finished sentences about what came of it; they follow an action.
OUTCOMES: dict[Language, dict[str, dict[str, tuple[str, ...]]]] = {
    "en": {
        "ramp": {
            "push": ("{TA} keeps going, pushing {tb} ahead of it.", "{TB} is pushed away and {ta} goes on after it.", "{TB} is no match: {ta} pushes on past the place where {tb} stood."),
            "stop": ("{TA} stops dead on the spot and {tb} takes over its motion.", "{TA} comes to a halt, and it is {tb} that moves on.", "There {ta} stops, having handed everything to {tb}."),
            "bounce": ("{TA} bounces back from {tb}.", "{TA} is thrown back the way it came: {tb} made it rebound.", "{TB} makes {ta} bounce back towards the ramp."),
        },
        "seesaw": {
            "first": ("{TA} goes down and {tb} goes up.", "The {left} end sinks under {ta}, and {tb} rises.", "Up goes {tb}; {ta} has sunk to the bottom."),
            "level": ("The plank stays level: {ta} and {tb} balance.", "Neither sinks; {ta} and {tb} balance each other.", "Nothing tips, for {ta} and {tb} keep the balance."),
            "second": ("{TB} goes down and {ta} goes up.", "The {right} end sinks under {tb}, and {ta} rises.", "Up goes {ta}; {tb} has sunk to the bottom."),
        },
        "catapult": {
            "over": ("{TB} flies over the fence.", "{TB} is hurled clean over the fence.", "Over the fence flies {tb}."),
            "short": ("{TB} is tossed up but falls short of the fence.", "{TB} hops up and comes down again before the fence.", "The throw lifts {tb} and drops it short of the fence."),
            "stay": ("{TB} hardly stirs in the scoop.", "The scoop does not rise and {tb} stays where it was.", "{TB} stays put: the arm cannot lift it."),
        },
        "dominoes": {
            "knock": ("The dominoes topple and {tb} is knocked off the shelf.", "Over go the dominoes, and off the edge falls {tb}.", "{TB} tumbles from the shelf, swept off by the toppling dominoes."),
            "hold": ("The dominoes topple, but {tb} stays on the shelf.", "Over fall the dominoes; {tb} does not leave the shelf and stays.", "The dominoes end up fallen against {tb}, which stays on the shelf."),
            "stand": ("The dominoes stay standing, and {tb} is left in peace.", "Not one domino falls.", "The row does not topple: {ta} cannot knock it down."),
        },
        "table": {
            "break": ("The coil snaps and the table crashes down with {ta} and {tb}.", "It is too much: under {ta} and {tb} the coil breaks.", "Together {ta} and {tb} break the table down to the ground."),
            "sink": ("The table sinks a little way and there it carries {ta} and {tb}.", "Under {ta} and {tb} the coil sinks, but does not snap.", "The table sinks part of the way under {ta} and {tb}."),
            "bear": ("The table bears {ta} and {tb} without sinking.", "The coil does not sink at all: it bears both {ta} and {tb}.", "{TA} and {tb} together do not make the table sink."),
        },
    },
    "ja": {
        "ramp": {
            "push": ("{a}は{b}を押しのけて進みつづける。", "{b}は押しやられ、{a}がそのあとを追って進む。", "{a}は止まらず、{b}を前へ押していく。"),
            "stop": ("{a}はその場でぴたりと止まり、代わりに{b}が動きだす。", "そこで{a}は止まり、先へ進むのは{b}のほうだ。", "{a}は勢いをすっかり{b}に渡して止まる。"),
            "bounce": ("{a}は{b}に跳ね返される。", "{b}に当たった{a}は、来たほうへ跳ね返る。", "{a}は跳ね返って、坂のほうへ戻ってしまう。"),
        },
        "seesaw": {
            "first": ("{a}が下がり、{b}が上がる。", "{left}端が{a}とともに沈み、{b}は持ち上がる。", "{b}は高く上がり、{a}は下まで沈む。"),
            "level": ("板は水平のまま、{a}と{b}が釣り合う。", "{a}も{b}も沈まず、シーソーは釣り合っている。", "どちらへも傾かない。{a}と{b}は釣り合う。"),
            "second": ("{b}が下がり、{a}が上がる。", "{right}端が{b}とともに沈み、{a}は持ち上がる。", "{a}は高く上がり、{b}は下まで沈む。"),
        },
        "catapult": {
            "over": ("{b}は柵を飛び越える。", "{b}は柵の向こうまで飛んでいく。", "勢いよく飛んだ{b}は柵を越えた。"),
            "short": ("{b}は跳ね上がるが、柵の手前に落ちる。", "{b}は少し飛んだだけで、柵には届かない。", "{b}は持ち上がったものの、柵を越えずに落ちる。"),
            "stay": ("{b}はさじの中でほとんど動かない。", "さじは上がらず、{b}は動かないままだ。", "腕は{b}を持ち上げられず、{b}は動かない。"),
        },
        "dominoes": {
            "knock": ("ドミノが倒れ、{b}は棚から落ちる。", "倒れたドミノに押されて、{b}が棚の端から落ちる。", "ドミノは次々に倒れ、{b}を棚から突き落とす。"),
            "hold": ("ドミノは倒れるが、{b}は棚から落ちない。", "倒れたドミノは{b}に寄りかかり、{b}は棚の上に残る。", "ドミノが倒れても、{b}は棚の上で踏みとどまる。"),
            "stand": ("ドミノは一枚も倒れない。", "列は倒れず、{b}には何も届かない。", "{a}にはドミノを倒すことができない。"),
        },
        "table": {
            "break": ("ばねが折れ、台は{a}と{b}をのせたまま崩れ落ちる。", "{a}と{b}には耐えられず、ばねが壊れる。", "二つがのったとたん、台は壊れて床まで落ちる。"),
            "sink": ("台は少し沈んだところで{a}と{b}を支える。", "{a}と{b}の下でばねは沈むが、折れはしない。", "台は途中まで沈んで止まる。"),
            "bear": ("台は沈まずに{a}と{b}を支える。", "ばねはびくともせず、{a}と{b}の両方を支える。", "{a}と{b}がのっても台は沈まない。"),
        },
    },
}  # fmt: skip

# What came of the finish, by (finish, whether the bell rang or the bucket caught the second piece).
FINISH_ACCOUNTS: dict[Language, dict[tuple[str, bool], tuple[str, ...]]] = {
    "en": {
        ("bell", True): ("The bell rings.", "And the bell [rings|is heard ringing]!", "Somewhere close a bell rings out.", "A bright ringing ends it all."),
        ("bell", False): ("The bell does not ring.", "No bell is rung this time.", "The bell keeps silent."),
        ("bucket", True): ("{TB} falls into the bucket.", "{TB} lands in the bucket.", "The bucket [catches {tb}|has caught {tb}]."),
        ("bucket", False): ("The bucket stays empty.", "Nothing falls into the bucket."),
        ("domino bell", True): ("The last domino falls and rings the bell.", "Over goes the last domino, and the bell rings."),
        ("domino bell", False): ("The bell at the end does not ring.", "The end of the machine keeps silent."),
    },
    "ja": {
        ("bell", True): ("ベルが鳴る。", "そしてベルが鳴った。", "近くでベルの音が響く。", "最後に澄んだ音が鳴った。"),
        ("bell", False): ("ベルは鳴らない。", "今回、ベルは鳴らなかった。", "ベルは鳴らずじまいだ。"),
        ("bucket", True): ("{b}はバケツに落ちる。", "{b}がバケツの中へ落ちた。", "落ちてきた{b}をバケツが受けとめる。"),
        ("bucket", False): ("バケツには何も落ちない。", "バケツは空のまま残る。"),
        ("domino bell", True): ("最後のドミノが倒れてベルが鳴る。", "残る一枚も倒れ、ベルが鳴った。"),
        ("domino bell", False): ("最後のベルは鳴らない。", "終わりのベルまでは届かない。"),
    },
}  # fmt: skip

BYSTANDERS: dict[Language, tuple[str, ...]] = {
    "en": ("A child claps.", "Everyone leans closer to look.", "Somebody laughs.", "\"Again!\" says a voice.", "For a moment nobody speaks.", "The cat on the sill has seen it all.", "That was the whole of it.", "Then it is quiet."),
    "ja": ("子どもが手をたたく。", "みんなが身をのりだして見ている。", "だれかが笑った。", "「もう一回」と声がする。", "しばらく、だれも口をきかない。", "窓辺の猫も見ていた。", "それだけのことだ。", "あとは静かになった。"),
}  # fmt: skip

# What happens whenever two kinds meet: a statement, a question with its answer, an instruction, an event, in this order, and each
# says who is where. {then} is an outcome of OUTCOMES.
KNOWLEDGE: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "ramp": ("When {a} slides down a ramp into {b}: {then}", "What happens when {a} slides down a ramp into {b}? {then}", "Let {a} slide into {b} and watch. {then}", "{A} slides down the ramp and hits {b}. {then}"),
        "seesaw": ("When {a} and {b} sit on a seesaw, {a2} on the {left}: {then}", "{A} on the {left} end of a seesaw, {b} on the {right}: what happens? {then}", "Put {a} at the {left} of a seesaw and {b} at the {right}. {then}", "A hand lets go of a seesaw with {a} on the {left} and {b} on the {right}. {then}"),
        "catapult": ("When {a} drops on the arm of a catapult that holds {b}: {then}", "What happens when {a} falls on a catapult loaded with {b}? {then}", "Load a catapult with {b} and drop {a} on its arm. {then}", "{A} falls on the arm of a catapult that has {b} in its scoop. {then}"),
        "dominoes": ("When {a} runs into two dominoes with {b} behind them: {then}", "What happens when {a} slides into the dominoes before {b}? {then}", "Send {a} into the dominoes that stand before {b}. {then}", "{A} slides down a ramp into the dominoes, and behind them stands {b}. {then}"),
        "table": ("When {a} drops beside {b} on a coil table: {then}", "What happens when {a} falls on the coil table where {b} sits? {then}", "Drop {a} on the coil table beside {b}. {then}", "{A} comes down on the coil table, right beside {b}. {then}"),
    },
    "ja": {
        "ramp": ("{a}が坂を滑って{b}にぶつかると、こうなる。{then}", "{a}が坂を滑って{b}にぶつかるとどうなるか。{then}", "坂の上から{a}を放し、{b}に当ててみる。{then}", "{a}が坂を滑ってきて、待っていた{b}に当たる。{then}"),
        "seesaw": ("{left}に{a}、{right}に{b}をのせたシーソーでは、こうなる。{then}", "シーソーの{left}に{a}、{right}に{b}をのせるとどうなるか。{then}", "{a}を{left}、{b}を{right}にしてシーソーにのせる。{then}", "{left}に{a}、{right}に{b}がのったシーソーから手が離される。{then}"),
        "catapult": ("{a}を投石機の腕に落とすと、さじの{b}はこうなる。{then}", "{b}をのせた投石機に{a}が落ちるとどうなるか。{then}", "投石機のさじに{b}を入れ、腕に{a}を落とす。{then}", "さじに{b}をのせた投石機の腕に、{a}が落ちてくる。{then}"),
        "dominoes": ("{a}がドミノの列に突っこみ、その先に{b}がいれば、こうなる。{then}", "{b}の前に立つドミノに{a}がぶつかるとどうなるか。{then}", "{a}をドミノに当てる。その向こうには{b}がいる。{then}", "{a}が坂を滑り、{b}の前に立つドミノにぶつかる。{then}"),
        "table": ("{a}と{b}をばねの台にのせると、こうなる。{then}", "{b}ののったばねの台に{a}が落ちるとどうなるか。{then}", "ばねの台で、{b}の隣に{a}を落とす。{then}", "ばねの台にいる{b}の隣へ、{a}が落ちてくる。{then}"),
    },
}  # fmt: skip

_STEMS_EN = re.split(
    r"\s+",
    "push shov driv plough bump knock strik struck hit hits hitting collid slam stop halt motion bounc rebound recoil thrown throw threw "
    "toss hurl topple toppl tumbl fall fell drop tip tipp sink sank sunk rise rose risen rising level balanc tilt lean fly flies flew flown "
    "land lift hop hops jump clear ring rings ringing rang rung chime silent snap break broke crash collaps bear bears bore carries carried "
    "stay remain keep kept roll slid slide glid move moving budge stir going goes went gone catch caught empty swept heavy heavi light "
    "weigh mass slip fast slow hard soft strong weak win wins lose loses beat beats peace match short",
)
_STEMS_JA = re.split(
    r"\s+",
    "押 突 止ま 止め 停 跳ね はね返 弾 進 動 倒 落 飛 鳴 響 沈 下が 上が 傾 釣り合 つり合 水平 耐え 支え 壊 折れ つぶ 潰 崩 滑 すべ ぶつ 当た 当て "
    "転が 重 軽 戻 越 届 残 びく 踏みとど 勝 負け 速 遅 強 弱 硬 柔 受けと",
)
# Words by which an outcome, a movement or a weight is told. English: beginnings of words (short ones with their usual
# endings only, or "win" would find "window"). Japanese: substrings.
_LONG = "|".join(stem for stem in _STEMS_EN if len(stem) > 4)
_SHORT = "|".join(stem for stem in _STEMS_EN if len(stem) <= 4)
OUTCOME_WORDS: dict[Language, re.Pattern[str]] = {
    "en": re.compile(rf"\b(?:(?:{_LONG})\w*|(?:{_SHORT})(?:e?s|e?d|p?ed|p?ing|e|er|est|en|y|ier)?)\b", re.IGNORECASE),
    "ja": re.compile("|".join(_STEMS_JA)),
}


def outcome_words(text: str) -> list[str]:
    """Every word of ``text``, in either language, that tells an outcome, a movement or a weight."""
    return [match.group() for language in LANGUAGES for match in OUTCOME_WORDS[language].finditer(text)]


@lru_cache(maxsize=2)
def _leads(language: Language) -> re.Pattern[str]:
    """What is set off, asked or ordered, in every form, about any two names: each is said whatever comes of it."""
    forms = [form for by_device in ACTIONS[language].values() for form in by_device]
    forms += [form.replace("{then}", "").rstrip() for by_device in KNOWLEDGE[language].values() for form in by_device]
    name = r"(?:(?:a|another|the) )?[a-z]+" if language == "en" else "[ァ-ヴー]+"
    # Longest first: one form may begin like another.
    patterns = [_pattern(form, lambda _: name) for form in sorted(forms, key=len, reverse=True)]
    return re.compile("|".join(patterns), re.IGNORECASE)


def without_leads(text: str) -> str:
    """``text`` without what is only set off: it has words of movement in it and tells no outcome."""
    for language in LANGUAGES:
        text = _leads(language).sub(" ", text)
    return text


# What the two pieces are called by whoever does not name them.
_ROLES: dict[Language, dict[str, tuple[str, str]]] = {
    "en": {
        "ramp": ("the upper piece", "the lower piece"),
        "seesaw": ("the {left} piece", "the {right} piece"),
        "catapult": ("the piece overhead", "the piece in the scoop"),
        "dominoes": ("the piece on the ramp", "the piece on the shelf"),
        "table": ("the piece overhead", "the piece on the table"),
    },
    "ja": {
        "ramp": ("上の駒", "下の駒"),
        "seesaw": ("{left}の駒", "{right}の駒"),
        "catapult": ("宙の駒", "さじの駒"),
        "dominoes": ("坂の駒", "棚の駒"),
        "table": ("宙の駒", "台の駒"),
    },
}

# ---- filling ------------------------------------------------------------------------------------------------------

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\\\{(\w+)\\\}")


def _sides(language: Language, mirror: bool) -> tuple[str, str]:
    left, right = ("left", "right") if language == "en" else ("左", "右")
    return (right, left) if mirror else (left, right)


def _roles(device: str, language: Language, mirror: bool) -> tuple[str, str]:
    left, right = _sides(language, mirror)
    one, other = _ROLES[language][device]
    return one.format(left=left, right=right), other.format(left=left, right=right)


def _fill(
    form: str, rng: Random, language: Language, first: Kind | str, second: Kind | str | None, mirror: bool, **more: str
) -> str:
    """A form in words. A piece is a kind, which has a name, or what a bystander calls it."""
    form = _CHOICE.sub(lambda match: rng.choice(match.group(1).split("|")), form)
    left, right = _sides(language, mirror)
    slots = {"left": left, "right": right, **more}
    for letter, kind in (("a", first), ("b", second)):
        if kind is None:
            continue
        if isinstance(kind, str):
            slots |= dict.fromkeys((letter, letter + "2", "t" + letter), kind)
            slots |= dict.fromkeys((letter.upper(), "T" + letter.upper()), kind[0].upper() + kind[1:])
            continue
        if language == "ja":
            slots |= {letter: kind.kana}
        else:
            article = "another" if letter == "b" and kind == first else "a"
            slots |= {letter: f"{article} {kind.name}", letter + "2": f"the {kind.name}", "t" + letter: f"the {kind.name}"}
            slots |= {letter.upper(): f"{article.capitalize()} {kind.name}", "T" + letter.upper(): f"The {kind.name}"}
    return form.format(**slots)


def _pattern(form: str, piece: Callable[[str], str]) -> str:
    """A regular expression for a form in all its wordings; ``piece`` gives that of a slot which holds a piece."""

    def slot(match: re.Match[str]) -> str:
        return "(?:left|right|左|右)" if match[1] in ("left", "right") else piece(match[1])

    # Choices first: escaping would hide their brackets.
    parts = _CHOICE.split(form)
    wordings = (
        f"(?:{'|'.join(map(re.escape, part.split('|')))})" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )
    return _SLOT.sub(slot, "".join(wordings))


def _join(parts: list[str], language: Language) -> str:
    return (" " if language == "en" else "").join(parts)


def opening(spec: MachineSpec, first: Kind, second: Kind, rng: Random, language: Language, looks: bool = True) -> str:
    """How things stand before anything moves, mostly with what a piece ``looks`` like. No outcome words."""
    parts = [_fill(rng.choice(OPENINGS[language][spec.device]), rng, language, first, second, spec.mirror)]
    if spec.finish:
        parts.append(_fill(rng.choice(FINISH_OPENINGS[language][spec.finish]), rng, language, first, second, spec.mirror))
    if looks and rng.random() < 0.6:
        kind = rng.choice((first, second))
        parts.append(
            _fill(rng.choice(LOOK_SENTENCES[language]), rng, language, kind, None, False, look=look(kind, rng, language))
        )
    return _join(parts, language)


def outcome(
    device: str, what: str, first: Kind | None, second: Kind | None, rng: Random, language: Language, mirror: bool = False
) -> str:
    """One sentence that tells the outcome ``what`` of ``device``; without kinds it names nobody: "the upper piece stops"."""
    one, other = (first, second) if first and second else _roles(device, language, mirror)
    return _fill(rng.choice(OUTCOMES[language][device][what]), rng, language, one, other, mirror)


def _action(device: str, rng: Random, language: Language, first: Kind | str, second: Kind | str, mirror: bool) -> str:
    """What is set off, as a sentence."""
    stop = "." if language == "en" else "。"
    return _fill(rng.choice(ACTIONS[language][device]), rng, language, first, second, mirror) + stop


def plain(device: str, what: str, rng: Random, language: Language, mirror: bool = False) -> str:
    """What a bystander tells who names nobody: what is set off and the outcome ``what`` of ``device``."""
    action = _action(device, rng, language, *_roles(device, language, mirror), mirror)
    return _join([action, outcome(device, what, None, None, rng, language, mirror)], language)


def wordings(device: str, rng: Random, language: Language, mirror: bool = False) -> tuple[tuple[str, ...], ...]:
    """For every outcome of ``device``, all sentences that may tell it and name nobody."""
    called = _roles(device, language, mirror)
    return tuple(
        tuple(_fill(form, rng, language, *called, mirror) for form in forms) for forms in OUTCOMES[language][device].values()
    )


def sights(device: str, rng: Random, language: Language, mirror: bool = False) -> tuple[tuple[str, ...], ...]:
    """For every outcome of ``device``, all that `plain` may tell of it after one and the same action."""
    action = _action(device, rng, language, *_roles(device, language, mirror), mirror)
    return tuple(tuple(_join([action, told], language) for told in forms) for forms in wordings(device, rng, language, mirror))


def account(
    scene: Scene, first: Kind | None, second: Kind | None, rng: Random, language: Language, nameless: float = 0.0
) -> str:
    """What happened, beginning to end: mostly the opening, then the action, the outcome, the finish, sometimes a bystander.

    Without kinds it names nobody: only who looks at the clip can know what it tells. With them, the share ``nameless`` of outcomes
    still names nobody, after an opening that does.
    """
    spec = scene.spec
    if first is None or second is None:
        parts = [plain(spec.device, scene.outcome, rng, language, spec.mirror)]
        if spec.finish:
            happened = scene.caught if spec.finish == "bucket" else scene.rang
            form = rng.choice(FINISH_ACCOUNTS[language][spec.finish, happened])
            parts.append(_fill(form, rng, language, *_roles(spec.device, language, spec.mirror), spec.mirror))
        return _join(parts, language)
    silent = rng.random() < nameless
    one, other = (None, None) if silent else (first, second)
    told = outcome(spec.device, scene.outcome, one, other, rng, language, spec.mirror)
    action = _action(spec.device, rng, language, first, second, spec.mirror)
    parts = []
    if rng.random() < 0.75 or silent:
        parts.append(opening(spec, first, second, rng, language))
    parts += [action, told]
    if spec.finish:
        happened = scene.caught if spec.finish == "bucket" else scene.rang
        parts.append(
            _fill(rng.choice(FINISH_ACCOUNTS[language][spec.finish, happened]), rng, language, first, second, spec.mirror)
        )
    if rng.random() < 0.25:
        parts.append(rng.choice(BYSTANDERS[language]))
    return _join(parts, language)


def knowledge(
    device: str,
    what: str,
    first: Kind,
    second: Kind,
    rng: Random,
    language: Language,
    mirror: bool = False,
    nameless: float = 0.0,
) -> str:
    """What happens whenever ``first`` meets ``second`` in ``device``: a statement, or a question and its answer.

    The share ``nameless`` of outcomes names nobody, though the kinds were named before.
    """
    one, other = (None, None) if rng.random() < nameless else (first, second)
    told = outcome(device, what, one, other, rng, language, mirror)
    return _fill(rng.choice(KNOWLEDGE[language][device]), rng, language, first, second, mirror, then=told)


TEMPLATES = ("statement", "question", "instruction", "event", "story")  # how words lead up to an outcome


def question(template: str, spec: MachineSpec, first: Kind, second: Kind, rng: Random, language: Language) -> str:
    """What stands before an outcome, ready for one of its sentences to follow.

    ``template``: "story" tells how things stood and what is set off, as in `account`; the others are the forms of `knowledge`.
    """
    mirror = spec.mirror
    if template == "story":
        opened = opening(spec, first, second, rng, language, looks=False)
        begun = _join([opened, _action(spec.device, rng, language, first, second, mirror)], language)
    else:
        form = KNOWLEDGE[language][spec.device][TEMPLATES.index(template)]
        begun = _fill(form, rng, language, first, second, mirror, then="").rstrip()
    return begun + (" " if language == "en" else "")


def portrait(first: Kind, second: Kind | None, rng: Random, language: Language) -> str:
    """What one kind looks like, or two kinds side by side (``first`` on the left)."""
    if second is None:
        return _fill(rng.choice(PORTRAITS[language]), rng, language, first, None, False, look=look(first, rng, language))
    looks = {"look": look(first, rng, language), "lookb": look(second, rng, language)}
    return _fill(rng.choice(PAIRS[language]), rng, language, first, second, False, **looks)


# ---- reading ------------------------------------------------------------------------------------------------------

# Clear tellings that follow no form, by words alone; {a} and {b} are the two names. Only where no form is found.
_HINTS: dict[Language, dict[str, dict[str, str]]] = {
    "en": {
        "ramp": {"push": r"\b(push|shov|plough|driv)\w*|goes on after|ke(eps|pt) going", "stop": r"\b(stop|halt)\w*", "bounce": r"\b(bounc|rebound|recoil)\w*|thrown back"},
        "seesaw": {
            "first": r"{a}\W+(\w+\W+){{0,2}}(goes down|sinks|sank|sunk)\b|{b}\W+(\w+\W+){{0,2}}(goes up|rises|rose)\b",
            "level": r"\b(balanc\w*|level|neither)\b",
            "second": r"{b}\W+(\w+\W+){{0,2}}(goes down|sinks|sank|sunk)\b|{a}\W+(\w+\W+){{0,2}}(goes up|rises|rose)\b",
        },
        "catapult": {"over": r"\b(over|clears) the fence", "short": r"\bshort\b|before the fence|not reach", "stay": r"\bstays?\b|hardly|\b(not|cannot|never) (move|stir|rise|lift)\b"},
        "dominoes": {
            "knock": r"\b(knock\w*|swept|push\w*|falls?|fell|tumbl\w*|driven) (off|from)\b",
            "hold": r"(topple|fall|fell)\w*\b.*\bstays\b|stays on the shelf|not leave the shelf",
            "stand": r"stays? standing|not (one|a single) domino|no domino|not (topple|fall)\b|cannot knock",
        },
        "table": {"break": r"(?<!not )(?<!n't )\b(snap|break|broke|crash|collaps)\w*", "sink": r"(?<!not )(?<!n't )(?<!without )(?<!not make the table )\b(sink|sank)\w*", "bear": r"without sinking|\b(not|n't) (make the table )?sink|\bbears\b"},
    },
    "ja": {
        "ramp": {"push": "押", "stop": "止ま(?!らず|らない)|停", "bounce": "跳ね返|はね返"},
        "seesaw": {
            "first": "{a}[はが](下まで|下に)?(下が|沈[むみん])|{b}[はが](高く|上へ)?(上が|持ち上が)",
            "level": "釣り合|つり合|水平",
            "second": "{b}[はが](下まで|下に)?(下が|沈[むみん])|{a}[はが](高く|上へ)?(上が|持ち上が)",
        },
        "catapult": {"over": "飛び越|柵を(越え(?!ず|ない)|飛び)|柵の向こう", "short": "手前|届かな|越えず|越えな", "stay": "動かな|上がらず|持ち上げられ"},
        "dominoes": {"knock": "棚(の端)?から落ち(?!ない|ず)|突き落と|押し落と", "hold": "落ちな|残る|踏みとど|落ちず", "stand": "(列|ドミノ|一枚)[はも](一枚も)?倒れ(ない|ず)|倒すことができな|倒せな"},
        "table": {"break": "壊れ(?!ない|ず)|折れ(?!は|ない|ず)|崩れ(?!ない|ず)", "sink": "沈(む|み|んで|んだ)", "bear": "沈ま|びくとも"},
    },
}  # fmt: skip


@lru_cache(maxsize=256)
def _patterns(device: str, language: Language) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """(outcome, pattern) for every form: slots of pieces are groups that hold any words of one sentence."""

    def piece(name: str) -> str:
        letter = "ab"[name.lower().rstrip("2").endswith("b")]
        uses[letter] += 1
        return rf"(?P<{letter}{uses[letter]}>[^.!?:;,。、！？]{{1,40}}?)"

    found = []
    for what, forms in OUTCOMES[language][device].items():
        for form in forms:
            uses = Counter[str]()
            pattern = r"(?:^|(?<=[.!?:;\"」。！？\s]))" + _pattern(form, piece)
            found.append((what, re.compile(pattern, re.IGNORECASE)))
    return tuple(found)


def parse_outcome(
    text: str, device: str, language: Language, first: str = "", second: str = "", mirror: bool = False
) -> str | None:
    """Which outcome of ``device`` a free text tells; None where it tells none, or several that exclude each other.

    ``first``, ``second``: names of the two pieces, which may also be called by their places. A piece called as the other one is
    not meant; where names are said and not given, which side of a seesaw goes down stays unknown.
    """
    one, other = (
        [c.lower() for c in called if c] for called in zip((first, second), _roles(device, language, mirror), strict=True)
    )
    called = {"a": (one, other), "b": (other, one)}

    def meant(match: re.Match[str]) -> bool:
        for slot, words in match.groupdict().items():
            own, others = (any(c in words.lower() for c in names) for names in called[slot[0]])
            if others and not own:
                return False
        return True

    told = {what for what, form in _patterns(device, language) if any(meant(m) for m in form.finditer(text))}
    if not told:
        given = {letter: f"(?:{'|'.join(map(re.escape, names))})" for letter, (names, _) in called.items()}
        hints = _HINTS[language][device].items()
        told = {what for what, hint in hints if re.search(hint.format(**given), text, re.IGNORECASE)}
    return told.pop() if len(told) == 1 else None


def form_count(language: Language) -> int:
    """Number of sentence forms of a language, wordings within a form not counted."""

    def count(table: object) -> int:
        if isinstance(table, dict):
            return sum(count(value) for value in table.values())
        return len(table) if isinstance(table, tuple) else 0

    every = (
        OPENINGS,
        FINISH_OPENINGS,
        LOOK_SENTENCES,
        PORTRAITS,
        PAIRS,
        ACTIONS,
        OUTCOMES,
        FINISH_ACCOUNTS,
        BYSTANDERS,
        KNOWLEDGE,
    )
    return sum(count(table[language]) for table in every)
