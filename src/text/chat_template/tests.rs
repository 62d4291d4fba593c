use serde_json::json;

use super::*;

fn render(source: &str, messages: &[serde_json::Value]) -> Result<String, TemplateError> {
    ChatTemplate::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned())?.render(
        messages,
        None,
        true,
        &serde_json::Map::new(),
    )
}

/// Without messages, and with a budget that debug builds are fast with.
fn render_on(fuel: u64, source: &str) -> Result<String, TemplateError> {
    ChatTemplate::with_fuel(source.to_owned(), String::new(), String::new(), fuel)?.render(
        &[],
        None,
        true,
        &serde_json::Map::new(),
    )
}

#[test]
fn renders_as_python_does() {
    let source = "{% for m in messages %}\n    {% if loop.first %}\n{{ bos_token }}{% endif %}\
        <{{ m['role'].upper() }}>{{ m.content.strip() }}\n{% endfor %}\
        {% if add_generation_prompt %}>{% endif %}{{ {'a': [1, 'é<']} | tojson }}";
    let parts = json!({"role": "user", "content": [{"type": "text", "text": " hi "}]});
    let result = render(source, &[parts, json!({"role": "b", "content": "c"})]).unwrap();
    let calls = json!({"role": "assistant", "content": null, "tool_calls": []});
    let absent = json!({"role": "assistant", "tool_calls": []});
    let added = render(
        "{% for m in messages %}{{ '<' + m['content'] }}{% endfor %}",
        &[calls, absent],
    );
    assert_eq!(added.unwrap(), "<<");
    assert_eq!(result, "<s><USER>hi\n<B>c\n>{\"a\": [1, \"é<\"]}");
}

#[test]
fn failures_are_typed() {
    assert!(matches!(
        render("{% if %}", &[]),
        Err(TemplateError::Syntax(_))
    ));
    let raised = render("{{ raise_exception('no system') }}", &[]).unwrap_err();
    assert!(matches!(raised, TemplateError::Refused(message) if message == "no system"));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    assert!(matches!(
        render_on(100_000, endless),
        Err(TemplateError::TooCostly)
    ));
}

/// The time that anything may take here, in a debug build on a busy machine: only some of it is this thread's. What is
/// not paid for takes hours.
const SOON: std::time::Duration = std::time::Duration::from_secs(900);

fn soon<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = std::time::Instant::now();
    let result = work();
    assert!(start.elapsed() < SOON, "{what} took {:?}", start.elapsed());
    result
}

/// Sources whose syntax trees would be deeper than any stack.
#[test]
fn sources_that_nest_without_end_are_refused() {
    let many = |part: &str| part.repeat(200_000);
    for (what, source) in [
        ("not", format!("{{{{ {}x }}}}", many("not "))),
        ("filters", format!("{{{{ x{} }}}}", many("|upper"))),
        ("sums", format!("{{{{ 1{} }}}}", many("+1"))),
        ("minus", format!("{{{{ {}1 }}}}", many("-"))),
        ("attributes", format!("{{{{ x{} }}}}", many(".a"))),
        ("calls", format!("{{{{ x{} }}}}", many("()"))),
        ("conditions", format!("{{{{ {}1 }}}}", many("1 if 0 else "))),
        ("tests", format!("{{{{ x{} }}}}", many(" is none"))),
        (
            "parentheses",
            format!("{{{{ {}1{} }}}}", many("("), many(")")),
        ),
        ("lists", format!("{{{{ {}{} }}}}", many("["), many("]"))),
        (
            "branches",
            format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(70_000)),
        ),
        (
            "blocks",
            format!(
                "{}{}",
                "{% if a %}".repeat(40_000),
                "{% endif %}".repeat(40_000)
            ),
        ),
        ("loops", "{% for a in b %}".repeat(60_000)),
        ("text", "a".repeat(2 << 20)),
    ] {
        let refused = soon(what, || render(&source, &[])).unwrap_err();
        let is_typed = matches!(
            refused,
            TemplateError::TooComplex(_) | TemplateError::Syntax(_)
        );
        assert!(is_typed, "{what}: {refused}");
    }
}

/// The deepest that are accepted compile, run and go again on the stacks that they get.
#[test]
fn the_deepest_sources_that_are_accepted_compile() {
    let many = |part: &str, count: usize| part.repeat(count);
    for (what, source) in [
        ("not", format!("{{{{ {}x }}}}", many("not ", 4000))),
        ("filters", format!("{{{{ x{} }}}}", many("|e", 2000))),
        ("sums", format!("{{{{ 1{} }}}}", many("+x", 2000))),
        ("minus", format!("{{{{ {}x }}}}", many("-", 4000))),
        ("attributes", format!("{{{{ x{} }}}}", many(".a", 2000))),
        ("calls", format!("{{{{ x{} }}}}", many("()", 2000))),
        (
            "conditions",
            format!("{{{{ {}1 }}}}", many("1 if x else ", 1000)),
        ),
        ("subscripts", format!("{{{{ x{} }}}}", many("[0]", 1300))),
        (
            "branches",
            format!("{{% if a %}}{}{{% endif %}}", many("{% elif a %}", 1000)),
        ),
        (
            "blocks",
            format!("{}{}", many("{% if a %}", 140), many("{% endif %}", 140)),
        ),
        (
            "parentheses",
            format!("{{{{ {}1{} }}}}", many("(", 70), many(")", 70)),
        ),
    ] {
        let result = soon(what, || render(&source, &[]));
        let is_compiled = !matches!(
            result,
            Err(TemplateError::Syntax(_) | TemplateError::TooComplex(_))
        );
        assert!(is_compiled, "{what}: {result:?}");
    }
}

/// Values that contain themselves, or that nest as deep as a loop runs.
#[test]
fn values_neither_contain_themselves_nor_nest_without_end() {
    let grow = |what: &str, print: &str| {
        format!(
            "{{% set ns = namespace(a=1) %}}{{% for i in range(9000) %}}{{% set ns.a = {what} %}}{{% endfor %}}{print}"
        )
    };
    for (what, source) in [
        (
            "itself",
            "{% set ns=namespace() %}{% set ns.a=ns %}{{ ns }}".to_owned(),
        ),
        (
            "itself in a list",
            "{% set ns=namespace() %}{% set ns.a=[{'b': ns}] %}{{ ns|tojson }}".to_owned(),
        ),
        (
            "at first",
            "{% set a=namespace() %}{% set b=namespace(a=a) %}{{ b }}".to_owned(),
        ),
        ("lists", grow("[ns.a]", "{{ ns.a|tojson }}")),
        ("lists unprinted", grow("[ns.a]", "")),
        ("tuples", grow("(ns.a,)", "{{ ns.a }}")),
        ("maps", grow("{'a': ns.a}", "{{ ns.a == ns.a }}")),
        ("arguments", grow("dict(a=ns.a)", "{{ ns.a|string }}")),
        ("namespaces", grow("namespace(a=ns.a)", "{{ ns.a }}")),
        ("batches", grow("[1]|batch(2, ns.a)|list", "{{ ns.a }}")),
        (
            "a block",
            grow(
                "0",
                "{% set ns.a | default([ns.a]) %}{% endset %}{{ ns.a }}",
            )
            .replace("= 0", "= [ns.a]"),
        ),
        (
            "macros",
            "{% set ns=namespace() %}{% macro f() %}{% endmacro %}{% set ns.a=f %}".to_owned(),
        ),
        (
            "loops",
            "{% set ns=namespace() %}{% for i in [1] %}{% set ns.a=loop %}{% endfor %}".to_owned(),
        ),
        (
            "two at once",
            "{% set ns=namespace() %}{% set ns.a, ns.b = ns, ns %}".to_owned(),
        ),
        (
            "by for",
            "{% set ns=namespace() %}{% for ns.a in [ns] %}{% endfor %}{{ ns }}".to_owned(),
        ),
        (
            "variables",
            format!(
                "{{% set x = 1 %}}{}{{{{ x|tojson }}}}",
                "{% set x = [x] %}".repeat(5000)
            ),
        ),
        (
            "calls of macros",
            "{% macro f(x) %}{{ f([[[[x]]]]) }}{% endmacro %}{{ f(1) }}".to_owned(),
        ),
        ("includes", "{% include 'chat' %}".to_owned()),
        ("extensions", "{% extends 'chat' %}".to_owned()),
    ] {
        let result = soon(what, || render_on(400_000, &source));
        assert!(result.is_err(), "{what} was accepted");
    }
}

/// Views of views of a list, as deep as the loop runs, are lists in the end.
#[test]
fn views_of_views_are_lists_in_the_end() {
    let views = "{% set ns = namespace(a=[1, 2]) %}{% for i in range(2000) %}{% set ns.a = ns.a[::-1] %}{% endfor %}{{ ns.a }}";
    assert_eq!(
        soon("views", || render_on(400_000, views)).unwrap(),
        "[1, 2]"
    );
}

/// What grows by powers: each is ended by its budget before it has used up the memory.
#[test]
fn growth_is_paid_for() {
    let double = |growth: &str, print: &str| {
        format!(
            "{{% set x = 'ab' %}}{}{print}",
            format!("{{% set x = {growth} %}}").repeat(60)
        )
    };
    for (what, source) in [
        ("~", double("x ~ x", "")),
        ("+", double("x + x", "")),
        ("*", double("x * 9", "")),
        ("join", double("[x, x]|join('')", "")),
        ("replace", double("x.replace('a', x)", "")),
        ("replace as a filter", double("x|replace('a', x)", "")),
        ("format", double("'%s%s'|format(x, x)", "")),
        ("format as a method", double("'{}{}'.format(x, x)", "")),
        ("lists", double("[x, x]", "{{ x }}")),
        ("lists as strings", double("[x, x]", "{{ x|string }}")),
        ("lists joined", double("[x, x]", "{{ x ~ '' }}")),
        ("lists as JSON", double("[x, x]", "{{ x|tojson }}")),
        ("maps", double("{'a': x, 'b': x}", "{{ x == 1 }}")),
        ("captured", format!("{{% set x = 'ab' %}}{}", "{% set x %}{{ x }}{{ x }}{% endset %}".repeat(60))),
        ("namespace", "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}".to_owned()),
        ("repeated", "{{ 'x' * 10**12 }}".to_owned()),
        ("repeated list", "{{ [1] * 10**12 }}".to_owned()),
        ("wide", "{{ '%1000000000d'|format(1) }}".to_owned()),
        ("wide by method", "{{ '{:>1000000000}'.format(1) }}".to_owned()),
        ("indent", "{{ 'a\nb'|indent(1000000000) }}".to_owned()),
        ("center", "{{ 'a'|center(1000000000) }}".to_owned()),
        ("power", "{{ 10 ** 1000000 }}".to_owned()),
        ("macro", "{% macro f(x) %}{{ f(x ~ x) }}{{ f(x ~ x) }}{% endmacro %}{{ f('ab') }}".to_owned()),
        ("loops", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_owned()),
        ("recursive loops", "{% for a in [1, 1] recursive %}{{ loop([1, 1]) }}{{ loop([1, 1]) }}{% endfor %}".to_owned()),
    ] {
        let result = soon(what, || render_on(400_000, &source));
        let is_typed = matches!(result, Err(TemplateError::TooCostly | TemplateError::Render(_)));
        assert!(is_typed, "{what}: {:?}", result.map(|text| text.len()));
    }
}

#[test]
fn a_prompt_is_bounded_by_its_caller() {
    let template = ChatTemplate::new(
        "{% for m in messages %}{{ m.content }}{% endfor %}".to_owned(),
        String::new(),
        String::new(),
    )
    .unwrap();
    let messages = [json!({"role": "user", "content": "x".repeat(1000)})];
    let within = |max_bytes| {
        template.render_within(&messages, None, true, &serde_json::Map::new(), max_bytes)
    };
    assert_eq!(within(1000).unwrap().len(), 1000);
    let refused = within(999).unwrap_err();
    assert!(matches!(
        refused,
        TemplateError::TooLarge { max_bytes: 999 }
    ));
}

/// What requests bring is nested as deep as JSON may be, and printed.
#[test]
fn requests_may_nest_as_deep_as_json_does() {
    let deep = (0..120).fold(json!("x"), |inner, _| json!([inner, {"a": 1}]));
    let variables = json!({"deep": deep}).as_object().unwrap().clone();
    let template = ChatTemplate::new(
        "{% set ns = namespace() %}{% set ns.deep = deep %}{% set y = ns.deep %}{{ y|tojson }}"
            .to_owned(),
        String::new(),
        String::new(),
    )
    .unwrap();
    let text = template.render(&[], None, true, &variables).unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&text).unwrap(),
        deep
    );
}

#[test]
fn values_that_templates_keep_stay_what_they_are() {
    let source = "{% set ns = namespace(list=[], n=0, text='') %}{% for i in range(3) %}\
        {% set ns.list = ns.list + [i] %}{% set ns.n = ns.n + i %}{% set ns.text %}{{ ns.text }}{{ i }}{% endset %}{% endfor %}\
        {% set a, b = (1, 2) %}{% set c = messages[1:] if messages else none %}{% set d = undefined_name %}\
        {% set f = namespace %}{%- set e = 1 if true else 2 -%}\
        {{ ns.list }} {{ ns.n }} {{ ns.text }} {{ a }}{{ b }} {{ c|length }} {{ d is defined }} {{ e }} {{ c is sequence }}";
    let messages = [
        json!({"role": "a", "content": "x"}),
        json!({"role": "b", "content": "y"}),
    ];
    let text = render(source, &messages).unwrap();
    assert_eq!(text, "[0, 1, 2] 3 012 12 1 False 1 True");
}

#[test]
fn json_is_pythons() {
    let source = "{{ {'a': [1, 2.5, true, none, 'é\"'], 'b': {}, 'c': []} | tojson }}|{{ {'a': [1], 'b': {}} | tojson(indent=2) }}|{{ {1: 2} | tojson }}";
    assert_eq!(
        render(source, &[]).unwrap(),
        "{\"a\": [1, 2.5, true, null, \"é\\\"\"], \"b\": {}, \"c\": []}|{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}|{\"1\": 2}"
    );
}

/// gpt-oss' own template begins so.
#[test]
fn templates_know_the_date() {
    let date = render("{{ strftime_now('%Y-%m-%d') }}", &[]).unwrap();
    let parts: Vec<usize> = date.split('-').map(|part| part.len()).collect();
    assert_eq!(parts, [4, 2, 2], "{date}");
    assert!(render("{{ strftime_now('%Q') }}", &[]).is_err());
}

/// A thousand messages cost a small part of the budget in the longest template of the tests.
#[test]
fn long_conversations_are_well_within_the_budget() {
    let source = "{%- for message in messages %}{%- if message.role == 'user' or message.role == 'system' %}\
        {{- '<|im_start|>' + message.role + '\\n' + message.content|trim + '<|im_end|>' + '\\n' }}\
        {%- elif message.role == 'assistant' %}{{- '<|im_start|>' + message.role }}\
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}";
    let messages: Vec<serde_json::Value> = (0..1000)
        .map(|index| {
            let role = ["user", "assistant"][index % 2];
            json!({"role": role, "content": "word ".repeat(3000)})
        })
        .collect();
    let text = soon("a thousand messages", || render(source, &messages)).unwrap();
    assert!(text.len() > 14_000_000);
}
