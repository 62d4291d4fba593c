"""What two answers must share to count as one in a vote: the server's rule (src/reward/answer.rs), in
Python.

Final answers are compared as the server does: numbers by value ("0.5", "1/2"), lists without order,
pairs with it, expressions by their value at fixed points, `x = ` and units dropped, the rest as
text. Matrices, functions but for roots, inequalities, and calls of tools, which no family has, are
compared as text here.
"""

import math
import random
import re
from fractions import Fraction

import grade

MAX_PASSES, MAX_DEPTH, MAX_EXPONENT, MAX_FACTORIAL = 8, 32, 1000, 170
POINTS = 5
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
UNITS = set(
    "m g s h cm mm km kg mg hr hrs hour hours min mins minute minutes sec secs second seconds "
    "day days week weeks month months year years dollar dollars cent cents usd degree degrees "
    "percent mph kph ft foot feet in inch inches yd yard yards mi mile miles meter meters metre "
    "metres centimeter centimeters centimetre centimetres kilometer kilometers kilometre "
    "kilometres millimeter millimeters gram grams kilogram kilograms pound pounds lb lbs ounce "
    "ounces oz ml liter liters litre litres gallon gallons unit units square sq cubic per "
    "radian radians rad points ways celsius fahrenheit ".split()
)
WRAPPERS = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|boxed|fbox)\s*\{([^{}]*)\}"
SILENT = r"\\(?:left|right|[bB]igl?|[bB]igr?|displaystyle)(?![a-zA-Z])|\\[,!;:$%()\[\]]|[$%€£]"
FOLDED = {
    r"\\[dtc]frac(?![a-zA-Z])": r"\\frac",
    r"\\(?:q?quad|\s)": " ",
    r"\\(?:cdot|times)(?![a-zA-Z])|[×·⋅]": "*",
    r"\\div(?![a-zA-Z])|÷": "/",
    r"\\pi(?![a-zA-Z])": "π",
    r"\\(?:leq?|leqslant)(?![a-zA-Z])|<=": "≤",
    r"\\(?:geq?|geqslant)(?![a-zA-Z])|>=": "≥",
    r"\\infty(?![a-zA-Z])|(?i:\binf(?:inity)?\b)": "∞",
    r"\\(?:emptyset|varnothing)(?![a-zA-Z])": "∅",
    r"\\pm(?![a-zA-Z])": "±",
    r"\\mp(?![a-zA-Z])": "∓",
    r"\\langle(?![a-zA-Z])": "(",
    r"\\rangle(?![a-zA-Z])": ")",
    r"\\(?:\{|lbrace(?![a-zA-Z]))": "«",
    r"\\(?:\}|rbrace(?![a-zA-Z]))": "»",
    r"\^?\{?(?:°|\\circ|\\degree)\}?": "",
    "[~\u00a0]": " ",
    "[−–]": "-",
    "√": r"\\sqrt ",
    "²": "^2",
    "³": "^3",
    "½": r"\\frac12",
    "¼": r"\\frac14",
    "¾": r"\\frac34",
}
# `x = 5`, `x_1 = 5`, `f(x) = 5`, `area = 5`.
ASSIGNED = re.compile(
    r"(?:\\?[a-zA-Z]|\\?[a-zA-Z]{4,}|[a-zA-Z]_[^-+*/^(,]{1,4}|[a-zA-Z]\(.\))\s*=" r"([^=<>≤≥≠]*\S[^=<>≤≥≠]*)"
)
OPEN, CLOSE = "([{«", ")]}»"


def answer_key(text):
    """The canonical form of the text's final answer."""
    return normalise(grade.final_answer(text))


def normalise(answer):
    """The key of an answer. A pass can show what the next one folds; few passes settle it."""
    key = answer = answer.strip()
    for _ in range(MAX_PASSES):
        following = key_of(clean(key), 0).strip()
        if following in (key, ""):
            return key
        key = following
    return answer


def clean(text):
    """The text without typesetting."""
    text = text.strip().strip("`")
    text = text.removeprefix("**").removesuffix("**").replace("{,}", "").replace(",\\!", "").replace("**", "^")
    while True:
        unwrapped = re.sub(WRAPPERS, r" \1 ", text)
        if unwrapped == text:
            break
        text = unwrapped
    text = re.sub(SILENT, "", text)
    for pattern, meaning in FOLDED.items():
        text = re.sub(pattern, meaning, text)
    return " ".join(text.split())


def key_of(text, depth):
    """The key of a cleaned answer's structure: lists, tuples, equations, and leaves."""
    text = without_units(text.strip().rstrip(".,;"))
    if depth > MAX_DEPTH or text.startswith("≋"):
        return text
    if assigned := ASSIGNED.fullmatch(text):
        return key_of(assigned[1], depth + 1)
    inner = enclosed(text)
    if inner is not None:
        items = split(inner, ",")
        if text[0] in "{«":
            return bag(items, depth) if len(items) > 1 else (key_of(inner, depth + 1) if inner.strip() else "∅")
        if len(items) > 1:
            return f"{text[0]}{', '.join(key_of(item, depth + 1) for item in items)}{text[-1]}"
        return key_of(inner, depth + 1)
    text = re.sub(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)", lambda run: run[0].replace(",", ""), text)
    text = text.replace(" or ", ", ").replace(" and ", ", ")
    items = [item for item in split(text, ",") if item.strip()]
    if len(items) > 1:
        return bag(items, depth)
    if re.search("[±∓]", text):
        both = [text.translate(str.maketrans("±∓", signs)) for signs in ("+-", "-+")]
        return bag(both, depth)
    sides = split(text, "=")
    if len(sides) > 1 and all(side.strip() for side in sides):
        return "=".join(sorted(key_of(side, depth + 1) for side in sides))
    return leaf_key(text)


def bag(items, depth):
    """The key of items whose order does not count."""
    return f"{{{', '.join(sorted(key_of(item, depth + 1) for item in items if item.strip()))}}}"


def split(text, separator):
    """The parts between separators outside all brackets."""
    parts, depth, start = [], 0, 0
    for at, c in enumerate(text):
        depth += (c in OPEN) - (c in CLOSE)
        if c == separator and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def enclosed(text):
    """What one pair of brackets has between it, if it encloses the whole text."""
    if len(text) < 2 or text[0] not in OPEN or text[-1] not in CLOSE:
        return None
    depth = 0
    for c in text[1:-1]:
        depth += (c in OPEN) - (c in CLOSE)
        if depth < 0:
            return None
    return text[1:-1] if depth == 0 else None


def without_units(text):
    """The text without the units at its end, where a quantity is left before them."""
    rest, is_short = text, False
    while unit := re.search(r"(?:\s|(?<=[\d)\]}»])|(?<=[a-zA-Z])/)([a-zA-Z]+)(?:\s*\^\{?[23]\}?)?$", rest):
        word, before = unit[1], rest[: unit.start()]
        known = word in UNITS if len(word) == 1 else word.lower() in UNITS
        # "3m" may be 3 times m.
        if not known or (len(word) == 1 and unit.start() == unit.start(1)):
            break
        is_short |= len(word) == 1
        rest = before.rstrip().rstrip("/").rstrip()
    has_letters = re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", rest))
    is_quantity = re.search(r"[\dπ\\]", rest) or rest.strip().lower() in NUMBER_WORDS
    return rest if is_quantity and not (is_short and has_letters) else text


def leaf_key(text):
    """The key of one number, expression or word."""
    text = text.strip().lstrip("+")
    if text.lower() in NUMBER_WORDS:
        return str(NUMBER_WORDS.index(text.lower()))
    # "A)" chooses A.
    if re.fullmatch(r"[a-zA-Z]\)", text):
        text = text[0]
    value = evaluated(text, None)
    if isinstance(value, Fraction):
        return str(value)
    if value is not None:
        return f"≈{value:.9e}"
    if len(text) > 1 and is_expression(text):
        values = [evaluated(text, point) for point in range(POINTS)]
        if sum(value is not None for value in values) > 1:
            return "≋" + ";".join("u" if value is None else sampled(value) for value in values)
    return text_key(text)


def sampled(value):
    """A value at a point, to six digits."""
    value = complex(value).real
    return "0" if abs(value) < 1e-14 else f"{value:.5e}"


def text_key(text):
    """Text without the spaces and braces that do not count; words in lower case."""
    text = re.sub(r"\{(\w)\}", r"\1", text.replace("*", " "))
    text = re.sub(r"\s+", " ", text).strip()
    # "2 3" is not 23, and words stay apart.
    text = re.sub(r"(?<![a-zA-Z]) (?![a-zA-Z])|(?<=[a-zA-Z]) (?![a-zA-Z])|(?<![a-zA-Z]) (?=[a-zA-Z])", apart, text)
    return text.lower() if all(c.isalpha() or c == " " for c in text) else text


def apart(space):
    """The space between two digits; nothing elsewhere."""
    around = space.string[space.start() - 1] + space.string[space.end()]
    return " " if around.isnumeric() else ""


def is_expression(text):
    """Whether letters read as variables: no words, and more than letters."""
    if all(c.isalpha() or c == " " for c in text):
        return False
    rest = re.sub(r"\\[a-zA-Z]+|sqrt|pi", " ", text)
    return all(len(run) < 4 for run in re.findall(r"[^\W\d_]+", rest))


def evaluated(text, point):
    """The value of an expression, a Fraction where it is one; None where it has none, or variables and no point."""
    try:
        parser = Parser(text, point)
        value = parser.sum()
        if parser.peek():
            return None
        value = value if isinstance(value, Fraction) else snapped(value)
        return value if isinstance(value, Fraction) or math.isfinite(value) else None
    except (NoValue, ArithmeticError, ValueError, TypeError, RecursionError):
        return None


def snapped(value):
    """The fraction with a small denominator that a float is but for rounding."""
    for denominator in range(1, 101):
        scaled = value * denominator
        whole = round(scaled)
        if whole and abs(scaled) < 1e9 and abs(scaled - whole) <= 1e-12 * abs(scaled):
            return Fraction(whole, denominator)
    return value


class NoValue(Exception):
    """The text is no expression."""


class Parser:
    """Evaluates one expression, in LaTeX or plain text."""

    def __init__(self, text, point):
        self.text, self.at, self.point = text, 0, point

    def peek(self):
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def eat(self, token):
        self.peek()
        found = self.text.startswith(token, self.at)
        self.at += len(token) * found
        return found

    def match(self, pattern):
        found = re.compile(pattern).match(self.text, self.at)
        self.at = found.end() if found else self.at
        return found

    def sum(self):
        value = self.product()
        while c := self.peek():
            if c not in "+-":
                break
            self.at += 1
            value = value + self.product() if c == "+" else value - self.product()
        return value

    def product(self):
        value = self.signed()
        while c := self.peek():
            if c in "*/":
                self.at += 1
                value = value * self.signed() if c == "*" else value / self.signed()
            elif c.isascii() and c.isalpha() or c in "(π\\":
                value *= self.power()
            else:
                break
        return value

    def signed(self):
        sign = 1
        while (c := self.peek()) and c in "+-":
            sign, self.at = (-sign if c == "-" else sign), self.at + 1
        return sign * self.power()

    def power(self):
        base = self.atom()
        while self.eat("!"):
            if not isinstance(base, Fraction) or base.denominator > 1 or not 0 <= base <= MAX_FACTORIAL:
                raise NoValue
            base = Fraction(math.factorial(base.numerator))
        if not self.eat("^"):
            return base
        exponent = self.signed()
        if abs(exponent) > MAX_EXPONENT:
            raise NoValue
        if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
            return base**exponent.numerator
        return real(float(base) ** float(exponent))

    def atom(self):
        c = self.peek()
        for left, right in ("()", "[]", "{}"):
            if c == left:
                self.at += 1
                return self.until(right)
        if self.eat("π") or self.match(r"pi(?![a-zA-Z])"):
            return math.pi
        if self.eat("≈"):
            return float(self.signed())
        if self.eat("\\frac"):
            return self.argument() / self.argument()
        if self.match(r"\\?sqrt"):
            return root(self.argument())
        if number := self.match(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3}(?!\d))?"):
            return self.mixed(number[0])
        if letter := self.match(r"[a-zA-Z](?:_\{?(\w)\}?)?"):
            return self.variable(letter[0].replace("{", "").replace("}", ""))
        raise NoValue

    def until(self, close):
        value = self.sum()
        if not self.eat(close):
            raise NoValue
        return value

    def argument(self):
        """A LaTeX argument: a group, one digit, or one atom."""
        self.peek()
        digit = self.match(r"\d(?!\d)") or self.match(r"\d")
        return Fraction(digit[0]) if digit else self.atom()

    def mixed(self, number):
        """A number, perhaps with the fraction below one after it: "1 1/2"."""
        value = Fraction(number)
        start = self.at
        part = self.match(r"\s+(\d+)\s*/\s*(\d+)") or self.match(r"\s*\\frac\s*\{?(\d+?)\}?\s*\{?(\d+)\}?")
        if part and number.isdigit() and 0 < int(part[1]) < int(part[2]):
            return value + Fraction(int(part[1]), int(part[2]))
        self.at = start
        return value

    def variable(self, name):
        """A letter's value at the point; Euler's number where "e" does not stand alone."""
        if name == "e" and len(self.text) > 1:
            return math.e
        if self.point is None:
            raise NoValue
        rng = random.Random(f"{name}/{self.point}")
        # Negative values tell |x| from x, but leave roots undefined, so most points have none.
        return rng.uniform(0.3, 2.3) * (-1 if self.point == POINTS - 2 else 1)


def real(value):
    """A float, where it is one."""
    if isinstance(value, complex):
        raise NoValue
    return value


def root(value):
    """The square root, exact where it can be."""
    if value < 0:
        raise NoValue
    if isinstance(value, Fraction):
        parts = math.isqrt(value.numerator), math.isqrt(value.denominator)
        if Fraction(*parts) ** 2 == value:
            return Fraction(*parts)
    return math.sqrt(value)
