//! What clients do: every route and every strategy, well and badly.

mod bad;
mod branches;
mod hostile;
mod plain;
mod prompts;
mod raw;
mod rewards;
mod search;
mod small;
mod traces;

use super::client::Client;
use super::tally::Ended;
use crate::api::strategy_names;

/// One thing that a client does: a request, or a few that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    ChatStream,
    Completions,
    /// With this strategy.
    Search(&'static str),
    Resume,
    Branches,
    Score,
    Pooling,
    Tokenize,
    Models,
    Probes,
    Traces,
    TraceOutcome,
    TraceDelete,
    Bad,
    Hostile,
    HalfRequest,
    Silence,
}

impl Kind {
    /// Every kind, and how often it is chosen.
    pub fn all() -> Vec<(Self, u32)> {
        let mut all = vec![
            (Self::Chat, 14),
            (Self::ChatStream, 14),
            (Self::Completions, 10),
            (Self::Resume, 3),
            (Self::Branches, 8),
            (Self::Score, 6),
            (Self::Pooling, 1),
            (Self::Tokenize, 4),
            (Self::Models, 2),
            (Self::Probes, 4),
            (Self::Traces, 5),
            (Self::TraceOutcome, 8),
            (Self::TraceDelete, 2),
            (Self::Bad, 8),
            (Self::Hostile, 3),
            (Self::HalfRequest, 3),
            (Self::Silence, 1),
        ];
        all.extend(strategy_names().map(|strategy| (Self::Search(strategy), 4)));
        all
    }

    pub fn name(self) -> String {
        let name = match self {
            Self::Chat => "chat",
            Self::ChatStream => "chat-stream",
            Self::Completions => "completions",
            Self::Search(strategy) => return format!("search-{strategy}"),
            Self::Resume => "search-resume",
            Self::Branches => "branches",
            Self::Score => "score",
            Self::Pooling => "pooling",
            Self::Tokenize => "tokenize",
            Self::Models => "models",
            Self::Probes => "probes",
            Self::Traces => "traces",
            Self::TraceOutcome => "trace-outcome",
            Self::TraceDelete => "trace-delete",
            Self::Bad => "bad",
            Self::Hostile => "hostile",
            Self::HalfRequest => "half-request",
            Self::Silence => "silence",
        };
        name.to_owned()
    }

    pub async fn run(self, client: &mut Client) -> Result<(), Ended> {
        match self {
            Self::Chat => plain::chat(client).await,
            Self::ChatStream => plain::chat_stream(client).await,
            Self::Completions => plain::completions(client).await,
            Self::Search(strategy) => search::search(client, strategy).await,
            Self::Resume => search::resume(client).await,
            Self::Branches => branches::session(client).await,
            Self::Score => small::score(client).await,
            Self::Pooling => small::pooling(client).await,
            Self::Tokenize => small::tokenize(client).await,
            Self::Models => small::models(client).await,
            Self::Probes => small::probes(client).await,
            Self::Traces => traces::read(client).await,
            Self::TraceOutcome => traces::outcome(client).await,
            Self::TraceDelete => traces::delete(client).await,
            Self::Bad => bad::ask(client).await,
            Self::Hostile => hostile::ask(client).await,
            Self::HalfRequest => raw::half_request(client).await,
            Self::Silence => raw::silence(client).await,
        }
    }
}

/// The kinds that are named, or all.
pub(super) fn chosen(only: &[String]) -> anyhow::Result<Vec<(Kind, u32)>> {
    let all = Kind::all();
    let names = || all.iter().map(|(kind, _)| kind.name());
    if let Some(unknown) = only.iter().find(|name| names().all(|it| it != **name)) {
        let names: Vec<String> = names().collect();
        anyhow::bail!(
            "--only: there is no {unknown:?}; choose of {}",
            names.join(", ")
        );
    }
    let is_chosen = |kind: &Kind| only.is_empty() || only.contains(&kind.name());
    Ok(all
        .into_iter()
        .filter(|(kind, _)| is_chosen(kind))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_is_chosen_and_has_a_name_of_its_own() {
        let all = Kind::all();
        let names: BTreeSet<String> = all.iter().map(|(kind, _)| kind.name()).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|(_, weight)| *weight > 0));
        assert!(names.iter().all(|name| name.len() <= 25), "{names:?}");
        assert!(
            !names.iter().any(|name| name.contains([' ', ','])),
            "a flag takes them"
        );
        assert_eq!(chosen(&[]).unwrap(), all);
        let some = ["score".to_owned(), "search-mcts".to_owned()];
        assert_eq!(chosen(&some).unwrap().len(), 2);
        assert!(chosen(&["sleep".to_owned()]).is_err());
    }
}
