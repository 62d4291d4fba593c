//! What a template's source may be, before it is compiled.
//!
//! The compiler of minijinja recurses once a token of a tag, and once an `elif`: their numbers
//! bound its stack. Values that a template keeps in variables pass through a filter of ours, which
//! bounds how deep and how large they grow (see [`super::plain`]). The filter is written into the
//! source behind what `set` assigns.

use minijinja::Environment;
use minijinja::machinery::{Instruction, Span, Token, get_compiled_template, tokenize};
use minijinja::syntax::SyntaxConfig;

use super::TemplateError;
use super::knows::Words;

/// Bytes of a template's source. The longest that models come with have some 20,000.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Tokens between `{%` and `%}`, or `{{` and `}}`.
const MAX_TAG_TOKENS: usize = 4096;
const MAX_ELIFS: usize = 1024;
/// Tokens of all tags.
const MAX_TOKENS: usize = 1 << 17;

/// The filter behind what is assigned to a variable, and to an attribute of a namespace. No template can name them:
/// their names are not identifiers of Jinja that anybody would choose, and calling them does no harm.
pub(super) const KEEP: &str = "ponder_keep_value";
pub(super) const KEEP_IN_NAMESPACE: &str = "ponder_keep_value_in_namespace";

/// A source that may be compiled.
pub(super) struct Source {
    pub text: String,
    /// The compiler recurses no deeper.
    pub max_depth: usize,
    pub words: Words,
}

/// Checks the limits, and puts the filters into the source.
pub(super) fn prepare(source: &str, syntax: &SyntaxConfig) -> Result<Source, TemplateError> {
    let too_complex = |what: &str, limit: usize| {
        Err(TemplateError::TooComplex(format!(
            "more than {limit} {what}"
        )))
    };
    if source.len() > MAX_SOURCE_BYTES {
        return too_complex("bytes", MAX_SOURCE_BYTES);
    }
    let mut inserts: Vec<(usize, String)> = Vec::new();
    let mut tag: Vec<(Token<'_>, Span)> = Vec::new();
    let (mut num_tokens, mut num_elifs, mut longest) = (0, 0, 0);
    let mut words = Words::default();
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token.map_err(|error| TemplateError::Syntax(error.to_string()))?;
        match token {
            Token::TemplateData(_) => {}
            Token::BlockStart | Token::VariableStart => tag.clear(),
            Token::BlockEnd => {
                inserts.extend(filters_of_set(&tag, span.start_offset as usize));
                let first = tag.first().map(|(token, _)| token);
                num_elifs += usize::from(matches!(first, Some(Token::Ident("elif"))));
            }
            Token::VariableEnd => {}
            token => {
                match &token {
                    Token::Ident(word) | Token::Str(word) => words.add(word),
                    _ => {}
                }
                tag.push((token, span));
                num_tokens += 1;
                longest = tag.len().max(longest);
            }
        }
        if longest > MAX_TAG_TOKENS {
            return too_complex("tokens in one tag", MAX_TAG_TOKENS);
        }
        if num_elifs > MAX_ELIFS {
            return too_complex("branches by elif", MAX_ELIFS);
        }
        if num_tokens > MAX_TOKENS {
            return too_complex("tokens", MAX_TOKENS);
        }
    }
    Ok(Source {
        text: with_inserts(source, &inserts),
        max_depth: longest + num_elifs,
        words,
    })
}

/// What to insert where in `{% set ... %}`, whose end begins at byte `end`.
fn filters_of_set(tag: &[(Token<'_>, Span)], end: usize) -> Vec<(usize, String)> {
    let [(Token::Ident("set"), _), rest @ ..] = tag else {
        return Vec::new();
    };
    let assign = rest
        .iter()
        .position(|(token, _)| matches!(token, Token::Assign));
    let is_target = |token: &Token<'_>| {
        matches!(
            token,
            Token::Ident(_) | Token::Dot | Token::Comma | Token::ParenOpen | Token::ParenClose
        )
    };
    let target_len = rest
        .iter()
        .take_while(|(token, _)| is_target(token))
        .count();
    let filter = match rest[..target_len]
        .iter()
        .any(|(token, _)| matches!(token, Token::Dot))
    {
        true => KEEP_IN_NAMESPACE,
        false => KEEP,
    };
    match assign {
        Some(assign) if assign == target_len => {
            let start = rest[assign].1.end_offset as usize;
            vec![(start, "(".to_owned()), (end, format!(")|{filter} "))]
        }
        // A block that is assigned, or not what the parser takes.
        _ => vec![(end, format!("|{filter} "))],
    }
}

/// `inserts`: ascending by their place.
fn with_inserts(source: &str, inserts: &[(usize, String)]) -> String {
    let mut text = String::with_capacity(source.len() + inserts.len() * 32);
    let mut from = 0;
    for (at, insert) in inserts {
        text.push_str(&source[from..*at]);
        text.push_str(insert);
        from = *at;
    }
    text.push_str(&source[from..]);
    text
}

/// Whether every assignment to a namespace of a compiled template passes through the filter.
pub(super) fn check_compiled(
    environment: &Environment<'_>,
    name: &str,
) -> Result<(), TemplateError> {
    let template = environment
        .get_template(name)
        .map_err(|error| TemplateError::Syntax(error.to_string()))?;
    let compiled = get_compiled_template(&template);
    for instructions in std::iter::once(&compiled.instructions).chain(compiled.blocks.values()) {
        // What the target evaluates to stands between the filter and the assignment.
        let mut is_kept = false;
        let mut at = 0;
        while let Some(instruction) = instructions.get(at) {
            match instruction {
                Instruction::ApplyFilter(name, ..) => is_kept = *name == KEEP_IN_NAMESPACE,
                Instruction::Lookup(_) | Instruction::GetAttr(_) => {}
                Instruction::SetAttr(_) if !is_kept => {
                    return Err(TemplateError::TooComplex(
                        "an assignment to several attributes of namespaces at once".to_owned(),
                    ));
                }
                _ => is_kept = false,
            }
            at += 1;
        }
    }
    Ok(())
}
