//! Secrets that the command line, the environment and the configuration file give. An empty one is
//! most likely a variable that was never set: it must not open a server to everybody.

use anyhow::bail;

/// Checks the keys of `flag`, which may also come from the variable `variable`.
///
/// # Errors
/// A key is empty, or no header can carry it.
pub(super) fn check<'a>(
    flag: &str,
    variable: &str,
    keys: impl IntoIterator<Item = &'a String>,
) -> anyhow::Result<()> {
    for key in keys {
        if key.trim().is_empty() {
            bail!("{flag} ({variable}) is empty: give a key, or leave it out to have none");
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!(
                "{flag} ({variable}) has a key with a space, a line break or a letter beyond ASCII, \
                 which no request can send"
            );
        }
    }
    Ok(())
}

/// Checks that no key has two scopes: it would have the narrower one alone.
///
/// # Errors
/// A key is in both lists.
pub(super) fn check_apart(api_keys: &[String], trace_keys: &[String]) -> anyhow::Result<()> {
    if api_keys.iter().any(|key| trace_keys.contains(key)) {
        bail!("--api-key and --trace-api-key have a key in common: give each its own");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(key: &str) -> Result<(), String> {
        let checked = check("--api-key", "PONDER_API_KEY", &[key.to_owned()]);
        checked.map_err(|error| error.to_string())
    }

    #[test]
    fn keys_must_be_keys() {
        assert_eq!(checked("sk-1_+/="), Ok(()));
        for key in ["", " ", "\t", "\n"] {
            let message = checked(key).unwrap_err();
            assert!(message.starts_with("--api-key (PONDER_API_KEY) is empty"));
            assert_eq!(message.lines().count(), 1);
        }
        for key in ["a b", "key\n", " key", "schl\u{fc}ssel"] {
            let message = checked(key).unwrap_err();
            assert!(
                message.contains("no request can send"),
                "{key:?}: {message}"
            );
        }
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        assert!(check_apart(&keys(&["a", "b"]), &keys(&["c"])).is_ok());
        assert!(check_apart(&keys(&["a", "b"]), &keys(&["b"])).is_err());
    }
}
