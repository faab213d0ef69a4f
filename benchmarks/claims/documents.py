"""Read the measured numbers of a Markdown document, and the comments that name their sources.

A numeral is a measured number where it has a decimal point or an exponent, or behind it a %, "times", a unit of
time, memory or passes, or an × that is not between two numerals ("2 to 5 s" is two of them). Other whole numbers need
no source; nor does what stands in headings, code, formulas and addresses, nor versions, the identifiers of papers,
and the numbers of sections and equations.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from markdown_it import MarkdownIt
from markdown_it.token import Token

MARKDOWN = MarkdownIt("commonmark").enable("table")
COMMENT = re.compile(r"<!--\s*((?:from|run|test|set)\b.*?)\s*-->", re.DOTALL)
# Formulas in dollars, addresses, and comments that name no source; all are blanked before reading.
NOT_PROSE = re.compile(
    r"\$\$.+?\$\$|\$(?![\s$])[^$`]+?(?<!\s)\$|https?://[^\s)>]+|<!--(?!\s*(?:from|run|test|set)\b).*?-->", re.DOTALL
)
# Directives of MyST in backticks whose body is prose; all other fences are code.
PROSE_FENCE = re.compile(r"\{(?:admonition|note|tip|hint|important|warning|caution|seealso|dropdown|figure)\}")
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
NUMERAL = re.compile(
    r"""(?<![\w.])(?<![^\W\d]-)                                     # not inside a word, a version or a name
    (?P<sign>(?<![\w.)])[-−])?
    (?:10(?P<bare>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)
      |(?P<mantissa>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)
       (?:e(?P<exponent>[-+]?\d+)|\s?[·×]\s?10(?P<power>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))?)
    (?:[\s\u00a0-]?(?:(?P<percent>%|per\s?cent\b)
       |(?P<unit>×(?!\s?\d)|x(?!\s?\d|\w)
         |(?:times|fold|[mµ]?s|seconds?|min|minutes?|h|hours?|days?|[kKMGT]i?B|passes)(?!\w)))
      |(?!,?\d|\w|\.\d))""",
    re.VERBOSE,
)
RANGE = re.compile(r"\s*(?:to|and|or|–|-)\s*")
PAPER = re.compile(r"\d{4}\.\d{4,5}")
BEFORE_A_NAME = re.compile(
    r"(?:arXiv|Python|torch|numpy|[Vv]ersion|[Ss]ections?|[Ee]quations?|[Ee]qs?\.|[Ff]igures?|[Tt]ables?|[Aa]ppendix|§)"
    r"[\s:(]*(?:>=|≥)?\s*$"
)


class DocumentError(ValueError):
    """A comment stands where Markdown does not let it."""

    def __init__(self, line: int, message: str):
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class Number:
    """A numeral of a text: its value, one unit of its last digit, and where it begins."""

    text: str
    value: float
    digit: float
    percent: bool
    measured: bool
    place: int

    def is_rounded(self, exact: "Number") -> bool:
        """Tell whether this is `exact`, rounded to the digits that are written; a half may go either way."""
        if self.percent == exact.percent:
            scales = (1.0,)
        else:
            scales = (0.01, 1.0) if self.percent else (100.0,)  # tables hold shares, or percents without the sign
        return any(abs(self.value * scale - exact.value) <= (0.5 + 1e-9) * self.digit * scale for scale in scales)


@dataclass(frozen=True)
class Claim:
    """A passage, the line where it begins, its measured numbers, and what names their sources (nothing: none has)."""

    line: int
    passage: str
    numbers: tuple[Number, ...]
    sources: tuple[str, ...]

    def where(self, number: Number | None) -> int:
        """Return the line of a number, or of the passage's end."""
        return self.line + self.passage[: number.place if number else None].count("\n")

    def around(self, number: Number | None, width: int = 90) -> str:
        """Return the words around a number, or at the passage's end."""
        place = number.place if number else len(self.passage)
        return " ".join(self.passage[max(0, place - width) : place + width].split())


@dataclass
class Block:
    """A paragraph, as one row, or a table: each row's line and text, and the comments on lines of their own below."""

    rows: list[tuple[int, str]] = field(default_factory=list)
    below: str = ""


def numbers(text: str) -> list[Number]:
    """Return the numerals of a text; of a range that is in percent or has a unit so are both ends."""
    result: list[Number] = []
    for match in reversed(list(NUMERAL.finditer(text))):
        if PAPER.fullmatch(match[0].strip()) or BEFORE_A_NAME.search(text[max(0, match.start() - 20) : match.start()]):
            continue
        number = _number(match)
        if result and not (match["unit"] or match["percent"]) and RANGE.fullmatch(text[match.end() : result[-1].place]):
            number = replace(number, percent=result[-1].percent, measured=number.measured or result[-1].measured)
        result.append(number)
    return result[::-1]


def _number(match: re.Match[str]) -> Number:
    mantissa = (match["mantissa"] or "1").replace(",", "")
    power = match["power"] or match["bare"]
    exponent = power.translate(SUPERSCRIPTS) if power else match["exponent"]
    scale = 10.0 ** int(exponent or 0)
    return Number(
        text=" ".join(match[0].split()),
        value=(-1 if match["sign"] else 1) * float(mantissa) * scale,
        digit=10.0 ** -len(mantissa.partition(".")[2]) * scale,
        percent=bool(match["percent"]),
        measured=bool("." in mantissa or exponent or match["unit"] or match["percent"]),
        place=match.start(),
    )


def claims(text: str) -> Iterator[Claim]:
    """Yield the measured numbers of a document, each group with the comments that stand behind it.

    A comment speaks for the numbers since the comment before it, at most since the start of its paragraph or table
    row. On a line of its own below, it speaks for those of the paragraph or table that no other comment has. Where
    none of them counts as measured, it speaks for whole numbers: "182 of them <!-- run: make demo -->".
    """
    for block in _blocks(text):
        found = [claim for line, row in block.rows for claim in _claims_of(line, row)]
        below = tuple(COMMENT.findall(block.below))
        if below and all(claim.sources for claim in found):
            found.append(Claim(block.rows[-1][0] if block.rows else 1, block.below, (), below))
        yield from (claim if claim.sources else replace(claim, sources=below) for claim in found)


def _claims_of(line: int, text: str) -> Iterator[Claim]:
    start = 0
    for group in re.finditer(rf"(?:{COMMENT.pattern}\s*)+|\Z", text, re.DOTALL):
        passage, sources = text[start : group.start()], tuple(COMMENT.findall(group[0]))
        every = tuple(numbers(passage))
        measured = tuple(number for number in every if number.measured) or (every if sources else ())
        if sources or measured:
            yield Claim(line + text[:start].count("\n"), passage, measured, sources)
        start = group.end()


def _blocks(text: str, line: int = 0) -> list[Block]:
    blocks = [Block()]
    before = Token("", "", 0)
    for token in MARKDOWN.parse(NOT_PROSE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)):
        first = line + token.map[0] + 1 if token.map else 0
        match token.type:
            case "paragraph_open" | "table_open" | "heading_open":
                if token.map and before.map and before.type == "html_block" and before.map[1] == token.map[0]:
                    raise DocumentError(first, "a comment on a line of its own parts a paragraph: end a line with it")
                blocks.append(Block())
            case "tr_open":
                blocks[-1].rows.append((first, ""))
            case "inline" if before.type in ("td_open", "th_open"):
                row_line, row = blocks[-1].rows[-1]
                blocks[-1].rows[-1] = (row_line or first, f"{row} | {_flat(token)}")
            case "inline" if before.type != "heading_open":
                blocks[-1].rows.append((first, _flat(token)))
            case "html_block" if COMMENT.match(token.content.lstrip()):
                blocks[-1].below += token.content
                if COMMENT.sub("", token.content).strip():
                    raise DocumentError(first, "words behind a comment that begins a line are lost: end a line with it")
            case "html_block":
                blocks.append(Block([(first, re.sub(r"<(?!!--)[^>]*>", " ", token.content))]))
            case "fence" if PROSE_FENCE.match(token.info):
                blocks += _blocks(token.content, first)
        before = token
    return blocks


def _flat(inline: Token) -> str:
    """Return the words of a paragraph or cell, with its comments; code is left out."""
    parts = []
    for token in inline.children or ():
        match token.type:
            case "text" | "image":
                parts.append(token.content)
            case "softbreak" | "hardbreak":
                parts.append("\n")
            case "html_inline" if COMMENT.match(token.content):
                parts.append(token.content)
            case "code_inline":
                parts.append("`")
    return "".join(parts)
