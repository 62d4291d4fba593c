//! What templates know, asked of small ones that do as models' do.

use serde_json::{Map, json};

use super::{ChatTemplate, Knowledge};

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source.to_owned(), "<s>".to_owned(), "</s>".to_owned()).unwrap()
}

/// Prints every message.
const PLAIN: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
const NOTHING: Knowledge = Knowledge {
    developer: false,
    system: true,
    several_systems: true,
    tools: false,
    tool_role: false,
    tool_calls: false,
    thinking: false,
    wants_string_arguments: false,
    wants_short_ids: false,
    wants_parts: false,
};

#[test]
fn a_template_without_tools() {
    assert_eq!(*template(PLAIN).knows(), NOTHING);
    // Words in what a template writes say nothing.
    let prose = format!("developer tool tools tool_calls {PLAIN}");
    assert_eq!(*template(&prose).knows(), NOTHING);
    let fails = template("{{ raise_exception('never') }}");
    assert!(fails.knows().system, "its messages stay what they are");
}

#[test]
fn roles() {
    let refuses =
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}";
    let drops = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}";
    for source in [format!("{refuses}{PLAIN}"), drops.to_owned()] {
        let knows = *template(&source).knows();
        assert_eq!(
            (knows.system, knows.several_systems),
            (false, false),
            "{source}"
        );
    }
    let first_alone = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}\
        {{ raise_exception('must be first') }}{% endif %}{{ m.content }}{% endfor %}";
    let knows = *template(first_alone).knows();
    assert_eq!((knows.system, knows.several_systems), (true, false));
    let more = "{% for m in messages %}{{ m.content }}\
        {% if m.role == 'tool' or m.role == \"developer\" %}{% endif %}{% endfor %}";
    let expected = Knowledge {
        developer: true,
        tool_role: true,
        ..NOTHING
    };
    assert_eq!(*template(more).knows(), expected);
    let thinks = format!("{PLAIN}{{{{ messages[0].thinking }}}}");
    assert!(template(&thinks).knows().thinking);
}

#[test]
fn shapes_of_calls() {
    let calls = |arguments: &str, check: &str| {
        let source = format!(
            "{{% for m in messages %}}{{{{ m.content }}}}{{% for call in m.tool_calls %}}{check}\
            {arguments}{{% endfor %}}{{% endfor %}}"
        );
        let knows = *template(&source).knows();
        assert!(knows.tool_calls);
        (knows.wants_string_arguments, knows.wants_short_ids)
    };
    let object = "{{ call.function.arguments | tojson }}";
    let string = "{{ '```json\n' + call['function']['arguments'] + '\n```' }}";
    let pairs =
        "{% for key, value in call.function.arguments | items %}{{ key }}={{ value }}{% endfor %}";
    let either = "{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}{{ call.function.arguments | tojson }}{% endif %}";
    let short = "{% if call.id|length != 9 %}{{ raise_exception('nine') }}{% endif %}";
    for (arguments, wants_strings) in [
        (object, false),
        (string, true),
        (pairs, false),
        (either, false),
    ] {
        assert_eq!(calls(arguments, ""), (wants_strings, false), "{arguments}");
        assert_eq!(
            calls(arguments, short),
            (wants_strings, true),
            "{arguments}"
        );
    }
}

#[test]
fn templates_that_read_parts_get_parts() {
    let source = "{% for m in messages %}{% for part in m.content %}{% if part.type == 'text' %}\
        {{ part.text }};{% endif %}{% endfor %}{% endfor %}";
    let template = template(source);
    assert!(template.knows().wants_parts);
    let messages = [
        json!({"role": "user", "content": "a"}),
        json!({"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]}),
    ];
    let text = template.render(&messages, None, true, &Map::new()).unwrap();
    assert_eq!(text, "a;bc;");
    assert_eq!(template.source(), source);
}
