//! Finding formats in templates.

use super::*;
use crate::text::Tokenizer;
use crate::text::tokenizer::tests::byte_level_json;

const QWEN: &str = "{%- if tools %}# Tools ... within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>{% endif %}";

#[test]
fn formats_are_found_in_templates() {
    let tokenizer = Tokenizer::from_json(byte_level_json().to_string().as_bytes()).unwrap();
    let think = ReasoningFormat::by_name("qwen3");
    for (template, tools, reasoning) in [
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            None,
            None,
        ),
        (QWEN, Some(ToolFormat::Hermes), None),
        (
            "{% if tools %}<tool_call>{% endif %}{{ content.split('</think>') }}",
            Some(ToolFormat::Hermes),
            think.clone(),
        ),
        (
            "<tool_call>\n<function=f>\n<parameter=p>\n",
            Some(ToolFormat::Qwen3Coder),
            None,
        ),
        (
            "{% if tools %}[TOOL_CALLS][THINK][/THINK]",
            Some(ToolFormat::Mistral),
            ReasoningFormat::by_name("mistral"),
        ),
        (
            "Respond in the format {\"name\": function name, \"parameters\": dictionary of argument name and its value}. <|python_tag|>",
            Some(ToolFormat::Llama3Json),
            None,
        ),
        (
            "[func_name1(params_name1=params_value1, ...)]",
            Some(ToolFormat::Pythonic),
            None,
        ),
        (
            "'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' </think>",
            Some(ToolFormat::DeepSeek),
            think,
        ),
        (
            "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }} to=functions.{{ f }}<|channel|>commentary json<|message|>",
            Some(ToolFormat::Harmony),
            ReasoningFormat::by_name("openai_gptoss"),
        ),
        // Phi-3 ends every message as gpt-oss ends its thoughts.
        ("{{ '<|user|>' + m.content + '<|end|>' }}", None, None),
        ("<tool_call>{name}<arg_key>", None, None),
        ("{% if tools %}{{ tools | tojson }}{% endif %}", None, None),
    ] {
        let format = OutputFormat::detect(template, &tokenizer);
        assert_eq!(format.tools, tools, "{template}");
        assert_eq!(format.reasoning, reasoning, "{template}");
    }
}

#[test]
fn every_format_says_which_texts_may_be_special_tokens() {
    for name in ToolFormat::NAMES {
        let format = format(ToolFormat::by_name(name).unwrap());
        let marks = format.marks();
        assert!(marks.len() >= 3, "{name}: {marks:?}");
        assert!(marks.contains(&"</think>".to_owned()));
    }
}
