use super::*;

#[test]
fn final_answers() {
    let table = [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} then \boxed{ \frac{1}{2} }", r"\frac{1}{2}"),
        (r"\boxed {x^{2}}", "x^{2}"),
        (r"\fbox{7}", "7"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\left\{1,2\right\}}", r"\left\{1,2\right\}"),
        (r"\boxed{\{1}", "\\{1"),
        (r"\boxed{4} and \boxed{5", "4"),
        (r"{ stray \boxed{6}", "6"),
        (r"\boxed{} but #### 8", "8"),
        ("<answer> 9 </answer>", "9"),
        (r"\boxed{1} <answer>2</answer>", "2"),
        (r"<answer>2</answer> \boxed{1}", "1"),
        (r"<answer>so \boxed{3}</answer>", "3"),
        ("<answer>1</answer> x</answer>", "1"),
        ("Step 1: 3\n#### 1,234", "1,234"),
        ("#### $12.50\n", "12.50"),
        ("The answer is: 42.", "42"),
        ("The final answer is $x+1$. I hope it is correct.", "x+1"),
        ("**Answer:** $\\frac{1}{2}$", "\\frac{1}{2}"),
        ("**Answer**: **(B)**", "(B)"),
        ("answer: 3.5\nthat is 7", "3.5"),
        ("The answer is\n\n$$12$$\n", "12"),
        ("answer is 1. No, the answer is 2", "2"),
        ("we get 3 apples and 12,345.5 pears", "12,345.5"),
        ("from 10-5", "5"),
        ("it is -5", "-5"),
        ("it is 1/2 or 3/4 then", "3/4"),
    ];
    for (text, want) in table {
        assert_eq!(final_answer(text).as_deref(), Some(want), "{text}");
    }
    for none in ["", "no idea", "🙂", r"\boxed{", "</answer>", "####"] {
        assert_eq!(final_answer(none), None, "{none}");
    }
}

#[test]
fn hostile_texts_end_fast() {
    let started = crate::work::thread_time();
    for piece in [
        r"\boxed{",
        "}",
        "{",
        "\\",
        "<answer>",
        "</answer>",
        "<answer></answer>",
        "####",
        "####\n",
        "answer:",
        "answer:\n",
        "1,",
        "1,234",
        "-",
        ".",
        "🙂",
        r"\text{",
        " 1 m/s",
    ] {
        let text = piece.repeat(100_000 / piece.len());
        let _ = final_answer(&text);
        let _ = final_answer(&format!("é{text}é"));
    }
    assert!((crate::work::thread_time() - started).as_secs() < 20);
}

#[test]
fn cleans_and_strips() {
    assert_eq!(clean(r"\left( \dfrac12 , 3\right)"), r"( \frac12 , 3)");
    assert_eq!(clean(r"90^{\circ}"), "90");
    assert_eq!(clean(r"\text{\textbf{a}} b\"), "a b\\");
    for (text, want) in [
        ("5 m/s", "5"),
        ("3 cm^2", "3"),
        ("3 square feet", "3"),
        ("12 miles per hour", "12"),
        ("3m", "3m"),
        ("2x m", "2x m"),
        ("2x/m", "2x/m"),
        ("m", "m"),
        ("five dollars", "five"),
        ("x^2", "x^2"),
    ] {
        assert_eq!(strip_units(text), want, "{text}");
    }
}

#[test]
fn patterns_compile() {
    assert!(PHRASE.is_some() && NUMBER.is_some());
}
