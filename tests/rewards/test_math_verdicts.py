"""The reward "math" on answers as models write them: for each reference what is right and what is wrong.

The rubric is a person's: a right answer is final, unambiguous and equal; exactly, where that is a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import factorial

import pytest

from g2rpo_fast.rewards.math_answer import MathVerify
from g2rpo_fast.rewards.rational import NoNumber, TooLarge, rational

BOXED: dict[str, tuple[list[str], list[str]]] = {
    "18": (
        ["18", "18.", "18.0", "+18", "018", "(18)", "{18}", "$18$", "18 dollars",
         "\\text{18 dollars}", "18 apples", "18^\\circ", "18^{\\circ}", "18°", "18\\\\", "\\$18",
         "$18.00", "18\\%", "18 percent", "18\\text{ cm}", "18 \\mathrm{cm}^2", "18 cm", "x = 18",
         "x=18", "f(x) = 18", "9+9", "\\sqrt{324}", "2 \\times 9 = 18", "1.8 \\times 10^1",
         "1.8×10^{1}", "1.8 x 10^1", "1.8e1", "\\frac{36}{2}", "36/2", "１８", "€18", "18 €",
         "\\approx 18", "\\mathbf{18}", "18 dollars per day", "Janet makes $18 every day", "18 m"],
        ["17", "-18", "180", "1.8", "18.01", "17=18", "18 = 17", "18, 17", "17, 18", "18 or 19",
         "18 \\text{ or } 19", "18 and 19", "\\{18, 19\\}", "at least 18", "\\text{not } 18",
         "x > 18", "\\geq 18", "18x", "18x = 18y", "18\\pi", "18!", "18^2", "18 squared",
         "half of 18", "18 \\pm 1", "18 million", "\\frac{1}{18}", "", "8", "9^{9^{9^{9}}}",
         "(((20!)!)!)!", "(18, 19)", "18 - 19", "1,8", "eighteen plus 1"],
    ),
    "-5": (
        ["-5", "\u22125", "\u20135", "- 5", "-5.0", "-\\frac{10}{2}", "\\frac{-10}{2}", "(-5)",
         "-$5", "$-5", "-5^\\circ C"],
        ["5", "+5", "--5", "-50", "4 - 5"],
    ),
    "0": (["0", "-0", "0.00", "0/7"], ["1", "0.0000001", "10^{-30}", "\\frac{1}{2006!}"]),
    "1000": (
        ["1,000", "1{,}000", "1\\,000", "1 000", "1\u202f000", "1\u00a0000", "1'000",
         "1,000 dollars", "\\$1,000", "10^3", "10^{3}", "10³", "10**3", "1e3", "1 thousand",
         "1,000.00", "10 \\times 100", "10 \\cdot 100"],
        ["1,00", "1, 000", "100", "10,00", "10^{-3}", "1.000,5"],
    ),
    "1500000": (["1.5 million", "1,500,000", "1.5 \\times 10^6", "15,00,000"], ["1.5", "1,500"]),
    "0.5": (
        ["\\frac{1}{2}", "\\frac12", "\\dfrac{1}{2}", "1/2", "½", ".5", "0.50", "50\\%",
         "5 \\times 10^{-1}", "2^{-1}"],
        ["0.05", "5", "\\frac{1}{3}", "0.50000001", "2", "5\\%"],
    ),
    "50\\%": (["50", "50\\%", "50 percent", "0.5", "\\frac{1}{2}"], ["5", "0.05", "500\\%", "0.5\\%"]),
    "\\frac{1}{3}": (
        ["1/3", "\\frac{2}{6}", "0.\\overline{3}", "⅓"],
        ["0.333", "0.333333", "0.3333333333333333", "3"],
    ),
    "1.5": (
        ["1\\frac{1}{2}", "1 1/2", "1½", "\\frac{3}{2}", "\\frac{6}{4}"],
        ["11/2", "1/2", "1\\frac{1}{3}"],
    ),
    "-\\frac{3}{2}": (["-1\\frac{1}{2}", "-1.5", "\\frac{-3}{2}"], ["1.5", "-\\frac{2}{3}"]),
    "0.00005": (
        ["5e-5", "5e-05", "5 \\times 10^{-5}", "0.00005", "5E-5", "\\frac{1}{20000}"],
        ["5e - 5", "0.000051", "0"],
    ),
    "5e-05": (["0.00005", "5 \\times 10^{-5}"], ["5e - 5", "8.59", "5e5"]),
    "6.02e23": (["6.02 \\times 10^{23}", "6.02 \\cdot 10^{23}"], ["6.02 \\times 10^{22}", "6.02"]),
    "1e+16": (["10^{16}", "10000000000000000"], ["10^{15}", "10000000000000001"]),
    "10^{-31}": (["10^{-31}", "1e-31", "10⁻³¹"], ["10^{-30}", "0", "10^{31}"]),
    "\\frac{1}{2004!}": (["\\frac{1}{2004!}", "1/2004!"], ["\\frac{1}{2006!}", "0"]),
    "\\frac{1}{19!}": (["1/121645100408832000"], ["\\frac{1}{20!}"]),
    "\\frac{1}{2^{99}}": (["2^{-99}"], ["\\frac{1}{2^{98}}"]),
    "1.6 \\times 10^{-19}": (["1.60 \\times 10^{-19}", "16 \\times 10^{-20}"], ["6.626 \\times 10^{-34}"]),
    "0.0000002": ([], ["0.0000001"]),
    "7 \\times 10^{-9}": ([], ["1.2 \\times 10^{-8}"]),
    "120": (["5!", "120"], ["5", "5!!"]),
    "12345678901234567890": (["12345678901234567890"], ["12345678901234567891"]),
    "18 cm": (["18 cm", "18", "18\\text{ centimeters}"], ["18 m", "17 cm", "18 cm^2"]),
    "3 pm": (["3 pm", "3 PM", "3 p.m."], ["3 am", "4 pm"]),
    "x = 18": (["18", "x = 18"], ["y = 18", "x = 17"]),
    "A": (
        ["A", "\\text{A}", "(A)", "\\text{(A)}", "A.", "\\textbf{(A)}", "(A) 18 cm", "A: 18",
         "option A", "\\mathrm{A}"],
        ["a", "B", "(B)", "AB", "A and B", "A or B", "A, B", "(A) or (B)", "18", "not A"],
    ),
    "(B)": (["B", "(B)", "\\text{B}"], ["A", "b"]),
    "B": ([], ["b"]),
    "no": (["no", "\\text{no}", "No", "No.", "no, it is not"], ["on", "yes", "not", "no or yes"]),
    "Yes": (["yes", "Yes, because 2 < 3"], ["No", "eyes"]),
    "AC": ([], ["CA", "C \\cdot A"]),
    "ABC": ([], ["BCA", "ACB"]),
    "ABCD": ([], ["DACB"]),
    "listen": ([], ["silent"]),
    "seat": ([], ["east"]),
    "cat": ([], ["act"]),
    "evil": ([], ["live"]),
    "Thorn": ([], ["North"]),
    "Tuesday": (["Tuesday", "\\text{Tuesday}", "tuesday"], ["Monday", "Tues", "2"]),
    "isosceles triangle": (
        ["isosceles triangle", "Isosceles  triangle."],
        ["triangle", "scalene triangle"],
    ),
    "x+2": (["2+x", "x + 2"], ["x+3", "2x"]),
    "(x+1)^2": (["x^2+2x+1", "(1+x)^2"], ["x^2+1", "2x"]),
    "10^{-31}x": (["10^{-31} x"], ["10^{-30}x"]),
    "\\pi 10^{-31}": ([], ["\\pi 10^{-30}"]),
    "\\sqrt{2}": (["\\sqrt{2}", "2^{1/2}", "x = \\sqrt{2}"], ["\\sqrt{3}", "1.4", "\\sqrt{2}+10^{-20}"]),
    "\\frac{\\pi}{2}": (["\\pi/2", "0.5\\pi"], ["\\pi", "\\frac{\\pi}{3}"]),
    "(10^{-31}, 1)": (["(10^{-31}, 1)"], ["(10^{-30}, 1)"]),
    "(1, 2)": (["(1,2)", "\\left(1, 2\\right)"], ["(2, 1)", "1"]),
    "[0,1)": (["[0, 1)"], ["[0,1]", "(0,1)"]),
    "\\{1,2\\}": (["\\{2, 1\\}", "1, 2"], ["\\{1, 3\\}", "1"]),
    "x>5": (["x > 5"], ["x > 6", "x < 5", "5"]),
    "123_7": (["123_7", "123_{7}"], ["123_8"]),
}  # fmt: skip

FREE: dict[str, tuple[list[str], list[str]]] = {
    "18": (
        ["<think>6*3</think>\n<answer>18</answer>", "<answer> 18 </answer>", "<answer>18.</answer>",
         "<answer>$18</answer>", "<answer>18", "<think>6*3 is \\boxed{3}</think> so 18",
         "<think>6*3</think>18", "\\fbox{18}", "\\boxed 18", "####18", "#### 18.", "#### **18**",
         "#### `18`", "#### 18 dollars", "#### 18 because 6*3 is 18", "**Final Answer:** 18",
         "Final Answer: **18**", "Answer: `18`", "(18)",
         "The answer is $18$. I hope it is correct.", "it is 18.",
         "no, \\boxed{3}; yes, \\boxed{18}", "6 * 3 gives\nus 18", "#### 18\n\nQuestion: 5 apples?"],
        ["<think>6 * 3 = 18", "<think>Try 17</think> hm <think>18", "\\boxed{18} hm, no: \\boxed{",
         "\\boxed{18}, no, \\boxed{5}", "#### 18, 17", "18 #### 17", "#### 18 ####",
         "The answer is 17 or 18", "", "####", "nothing", "\ud800", "<answer>17</answer> 18",
         "[THINK]18", "<think>18</think>"],
    ),
    "-5": (
        ["#### \u22125", "#### \u20135", "The answer is \u22125.", "The answer is -5."],
        ["The answer is 5."],
    ),
    "1000": (["#### 1,000", "#### 1 000", "#### 1,000 dollars"], ["#### 1, 000"]),
    "0.00005": (["The answer is 5e-05.", "#### 5e-5"], []),
    "A": (
        ["The answer is A.", "<answer>A</answer>", "#### (A)", "A", "the correct answer is (A)."],
        ["The answer is B.", "A B"],
    ),
    "no": (["The answer is no.", "#### no"], ["The answer is on.", "I do not know"]),
}  # fmt: skip
TRIPLES = [
    (form.format(response), reference, verdict)
    for table, form in ((BOXED, "\\boxed{{{}}}"), (FREE, "{}"))
    for reference, answers in table.items()
    for verdict, responses in zip((1.0, 0.0), answers, strict=True)
    for response in responses
]


@pytest.fixture(scope="module")
def judge() -> Iterator[MathVerify]:
    judge = MathVerify(timeout_s=30.0)
    yield judge
    assert judge.num_abandoned == 0
    judge.close()


def test_table_of_verdicts_is_large() -> None:
    assert len(TRIPLES) >= 250
    assert 100 < sum(verdict for _, _, verdict in TRIPLES) < len(TRIPLES) - 100


@pytest.mark.parametrize(("response", "reference", "verdict"), TRIPLES)
def test_math_verdict(judge: MathVerify, response: str, reference: str, verdict: float) -> None:
    assert judge(response, reference, None) == verdict


@pytest.mark.parametrize("reference", [r for r in BOXED if r != "123_7"])
def test_math_pays_every_reference_itself(judge: MathVerify, reference: str) -> None:
    for response in (f"\\boxed{{{reference}}}", f"#### {reference}", f"<answer>{reference}</answer>"):
        assert judge(response, reference, None) == 1.0
    assert judge.check_reference(reference) is None


@pytest.mark.parametrize("reference", ["", " ", "\\text{}", "\\boxed{}", "$", "???", "\\text{ }."])
def test_math_says_which_references_it_cannot_read(judge: MathVerify, reference: str) -> None:
    assert "cannot parse the reference answer" in (judge.check_reference(reference) or "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", Fraction(2469, 2)),
        ("0.1\\overline{6}", Fraction(1, 6)),
        ("2\\frac{1}{3}", Fraction(7, 3)),
        ("-2^2", Fraction(-4)),
        ("\\frac{1}{2^{98}}", Fraction(1, 2**98)),
        ("6.02e23", Fraction(602 * 10**21)),
        ("3!\\times 2^{-1}", Fraction(3)),
        ("2006!", Fraction(factorial(2006))),
    ],
)
def test_rational_is_exact(text: str, value: Fraction) -> None:
    assert rational(text) == value


@pytest.mark.parametrize(
    "text", ["9^{9^{9^{9}}}", "6000!", "1e99999999", "1e-100000", "7" * 5000, "2^{200000}"]
)
def test_rational_of_any_size_is_refused_at_once(text: str) -> None:
    with pytest.raises(TooLarge):
        rational(text)


@pytest.mark.parametrize(
    "text", ["", "x", "1/0", "0^{-1}", "4^{1/2}", "1+1", "1 2", "5!!", "(1", "\\frac{1}", "(" * 3000]
)
def test_rational_refuses_what_is_no_number(text: str) -> None:
    with pytest.raises(NoNumber):
        rational(text)
