//! A server whose secret is empty does not start, wherever the secret comes from.

use std::process::{Command, Stdio};

/// Arguments and variables, and the flag that is empty.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

/// What the server says on its way out.
fn refusal(args: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ponder"));
    command
        .args(["serve", "no-such-model", "--port", "0"])
        .args(args);
    for name in ["PONDER_API_KEY", "PONDER_TRACE_API_KEY", "PONDER_CONFIG"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{args:?} {variables:?}: {said}");
    said
}

#[test]
fn empty_secrets_stop_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let empty = file("empty.toml", "api_key = \"\"");
    let among = file("among.toml", "trace-api-key = [\"a\", \"\"]");
    let cases: [Case; 9] = [
        (&["--api-key", ""], &[], "--api-key"),
        (&["--api-key="], &[], "--api-key"),
        (&["--api-key", "a,,b"], &[], "--api-key"),
        (&["--api-key", "a", "--api-key", " "], &[], "--api-key"),
        (&["--trace-api-key", ""], &[], "--trace-api-key"),
        (&[], &[("PONDER_API_KEY", "")], "--api-key"),
        (&[], &[("PONDER_TRACE_API_KEY", "")], "--trace-api-key"),
        (&["--config", &empty], &[], "--api-key"),
        (&["--config", &among], &[], "--trace-api-key"),
    ];
    for (args, variables, flag) in cases {
        let said = refusal(args, variables);
        assert!(said.contains(&format!("{flag} (")), "{said}");
        assert!(
            said.contains("is empty") && said.lines().count() == 1,
            "{said}"
        );
    }
    let list = file("list.toml", "api_key = []");
    let said = refusal(&["--config", &list], &[]);
    assert!(said.contains("api_key is an empty list"), "{said}");
    let said = refusal(&["--api-key", "a,b", "--trace-api-key", "b"], &[]);
    assert!(
        said.contains("in common") && said.lines().count() == 1,
        "{said}"
    );
    // With a key, what is wrong is the model.
    let said = refusal(&["--api-key", "a"], &[]);
    assert!(said.contains("no-such-model"), "{said}");
}
