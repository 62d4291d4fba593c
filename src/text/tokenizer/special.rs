//! Finding special tokens in a text.

use regex::Regex;

use super::TokenizerError;

/// A piece of a text.
pub(super) enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

/// Control tokens (read on request only) and user-defined ones (always read).
pub(super) struct SpecialTokens {
    all: Matcher,
    user_defined: Matcher,
}

struct Matcher {
    regex: Option<Regex>,
    /// Sorted by text.
    tokens: Vec<(String, u32)>,
}

impl Matcher {
    fn new(mut tokens: Vec<(String, u32)>) -> Result<Self, TokenizerError> {
        tokens.retain(|(text, _)| !text.is_empty());
        // Alternatives are tried in order, so the longest spelling wins.
        tokens.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0)));
        let pattern: Vec<String> = tokens.iter().map(|(text, _)| regex::escape(text)).collect();
        let regex = if tokens.is_empty() {
            None
        } else {
            let regex = regex::RegexBuilder::new(&pattern.join("|"))
                .size_limit(1 << 28)
                .build()
                .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
            Some(regex)
        };
        tokens.sort();
        Ok(Self { regex, tokens })
    }

    fn split<'a>(&self, text: &'a str) -> Vec<Fragment<'a>> {
        let mut fragments = Vec::new();
        let mut start = 0;
        for found in self.regex.iter().flat_map(|regex| regex.find_iter(text)) {
            let at = self
                .tokens
                .binary_search_by(|(token, _)| token.as_str().cmp(found.as_str()));
            let Ok(at) = at else { continue };
            if found.start() > start {
                fragments.push(Fragment::Text(&text[start..found.start()]));
            }
            fragments.push(Fragment::Token(self.tokens[at].1));
            start = found.end();
        }
        if start < text.len() {
            fragments.push(Fragment::Text(&text[start..]));
        }
        fragments
    }
}

impl SpecialTokens {
    pub(super) fn new(
        control: Vec<(String, u32)>,
        user_defined: Vec<(String, u32)>,
    ) -> Result<Self, TokenizerError> {
        let all = control
            .into_iter()
            .chain(user_defined.iter().cloned())
            .collect();
        Ok(Self {
            all: Matcher::new(all)?,
            user_defined: Matcher::new(user_defined)?,
        })
    }

    pub(super) fn split<'a>(&self, text: &'a str, parse_special: bool) -> Vec<Fragment<'a>> {
        if parse_special {
            self.all.split(text)
        } else {
            self.user_defined.split(text)
        }
    }
}
