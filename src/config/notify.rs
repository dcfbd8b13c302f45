//! Who is told when a job has ended: `roomkeeper.notify`.

use std::fmt;
use std::path::PathBuf;

use super::Secret;
#[cfg(feature = "daemon")]
use super::authentication::web_address;
#[cfg(feature = "daemon")]
use super::ours::{refuse_unknown, secret};
#[cfg(feature = "daemon")]
use super::values::{duration_with_unit, mapping, string, text, wrong};
#[cfg(feature = "daemon")]
use super::yaml::Value;
#[cfg(feature = "daemon")]
use crate::error::Error;
use crate::time::Millis;

/// How long whoever is told may take, where nothing is said.
const NOTIFY_TIMEOUT: Millis = Millis(30_000);

/// Who is told of jobs that ended, and of which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// A program and its arguments; it gets a JSON document on its standard input.
    pub command: Option<Command>,
    /// A web address; it gets the same document by `POST`.
    pub webhook: Option<Webhook>,
    /// Whether jobs that ended well are told.
    pub complete: bool,
    /// Whether jobs that failed are told.
    pub failed: bool,
    /// How long one telling may take; what takes longer is ended.
    pub timeout: Millis,
}

/// A program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The program, by its whole path.
    pub program: PathBuf,
    /// What stands after it.
    pub arguments: Vec<String>,
}

/// A web address that is told.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Whether it is told over TLS.
    pub is_encrypted: bool,
    /// Its host: a name, an address, or an address of six in brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Its path with what follows a question mark; many services have a secret there.
    pub path: Secret,
    /// What stands in `Authorization: Bearer …`.
    pub token: Option<Secret>,
}

/// As much of it as may be shown.
impl fmt::Display for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}/…", self.host, self.port)
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Webhook({self})")
    }
}

/// The keys of `notify` in our block.
#[cfg(feature = "daemon")]
pub(super) const NOTIFY_KEYS: &[(&str, &str)] = &[
    (
        "command",
        "a list: a program by its whole path, and its arguments",
    ),
    ("url", "a web address that takes POST requests"),
    ("token_path", "a file that holds the token for that address"),
    ("when", "a list of complete and failed"),
    ("timeout", "a duration such as 30s, up to 10m"),
];

/// Reads the block.
#[cfg(feature = "daemon")]
pub(super) fn read(value: &Value, directory: &std::path::Path) -> Result<Notify, Error> {
    const KEY: &str = "roomkeeper.notify";
    let keys = mapping(KEY, value)?;
    refuse_unknown(KEY, keys, NOTIFY_KEYS)?;
    let mut notify = Notify {
        command: None,
        webhook: None,
        complete: true,
        failed: true,
        timeout: NOTIFY_TIMEOUT,
    };
    let given = |key: &str| keys.get(key).filter(|value| !value.is_null());
    if let Some(value) = given("command") {
        notify.command = Some(command(value)?);
    }
    let token = text(keys, "token_path")?
        .map(|path| secret("roomkeeper.notify.token_path", &directory.join(path)))
        .transpose()?;
    if let Some(value) = given("url") {
        notify.webhook = Some(webhook(value, token)?);
    } else if token.is_some() {
        return Err(Error::Config(format!(
            "{}: roomkeeper.notify.token_path belongs to a url, and there is none",
            value.place()
        )));
    }
    if notify.command.is_none() && notify.webhook.is_none() {
        return Err(Error::Config(format!(
            "{}: {KEY} names nobody to tell: say command, or url, or both",
            value.place()
        )));
    }
    if let Some(value) = given("when") {
        let key = "roomkeeper.notify.when";
        let unfit = || wrong(key, value, "a list of complete and failed");
        let words = value.as_list().ok_or_else(unfit)?;
        let words: Vec<_> = words.iter().map(|word| word.as_str()).collect();
        let is_known = |word: &Option<&str>| matches!(word, Some("complete" | "failed"));
        if words.is_empty() || !words.iter().all(is_known) {
            return Err(unfit());
        }
        notify.complete = words.contains(&Some("complete"));
        notify.failed = words.contains(&Some("failed"));
    }
    if let Some(value) = given("timeout") {
        let key = "roomkeeper.notify.timeout";
        let timeout = duration_with_unit(key, value)?;
        if !(Millis(1_000)..=Millis(600_000)).contains(&timeout) {
            return Err(wrong(key, value, "a duration from 1s to 10m"));
        }
        notify.timeout = timeout;
    }
    Ok(notify)
}

#[cfg(feature = "daemon")]
fn command(value: &Value) -> Result<Command, Error> {
    let key = "roomkeeper.notify.command";
    let list = value.as_list().filter(|list| !list.is_empty());
    let Some(list) = list else {
        let wanted = "a list: [/usr/local/bin/tell, --room-jobs]";
        return Err(wrong(key, value, wanted));
    };
    let mut words = Vec::new();
    for word in list {
        words.push(string(key, word)?);
    }
    let program = PathBuf::from(words.remove(0));
    let is_program = program.is_absolute() && !words.iter().any(|word| word.contains('\0'));
    if !is_program || !is_executable(&program) {
        return Err(Error::Config(format!(
            "{}: {key}: {} should be the whole path of a program",
            value.place(),
            program.display()
        )));
    }
    Ok(Command {
        program,
        arguments: words,
    })
}

#[cfg(feature = "daemon")]
fn is_executable(program: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(program).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(feature = "daemon")]
fn webhook(value: &Value, token: Option<Secret>) -> Result<Webhook, Error> {
    let key = "roomkeeper.notify.url";
    let url = string(key, value)?;
    let (address, query) = match url.split_once('?') {
        Some((address, query)) => (address, format!("?{query}")),
        None => (url.as_str(), String::new()),
    };
    let is_plain = query.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    // What was given is in no message: it may hold a secret.
    let unfit = || {
        wrong(
            key,
            value,
            "http://host:port/path or https://host/path, without a user or a #",
        )
    };
    let address = web_address(address)
        .filter(|_| is_plain)
        .ok_or_else(unfit)?;
    let is_near =
        matches!(&*address.host, "localhost" | "[::1]") || address.host.starts_with("127.");
    if token.is_some() && !address.is_encrypted && !is_near {
        value.warn(format!(
            "{key}: the token goes to {} without encryption: say https://",
            address.host
        ));
    }
    let path = match &*address.path {
        "" => "/",
        path => path,
    };
    Ok(Webhook {
        path: Secret::new(format!("{path}{query}")),
        is_encrypted: address.is_encrypted,
        host: address.host,
        port: address.port,
        token,
    })
}

#[cfg(test)]
mod tests {
    use super::super::file::testing::{MINIMAL, read};
    use super::{NOTIFY_TIMEOUT, Notify};
    use crate::time::Millis;
    use std::path::PathBuf;

    fn notify(block: &str) -> Result<Notify, String> {
        let config = read(&format!("{MINIMAL}roomkeeper: {{notify: {block}}}\n"))?;
        Ok(config.notify.expect("somebody is told"))
    }

    #[test]
    fn a_program_and_an_address_are_told_and_the_address_is_shown_without_its_path() {
        let both = notify(
            "{command: [/bin/sh, -c, 'cat > x'], url: 'https://hooks.example.org/a/s3cret?b=c', when: [failed], timeout: 5s}",
        )
        .expect("reads");
        let command = both.command.as_ref().expect("a command");
        assert_eq!(command.program, PathBuf::from("/bin/sh"));
        assert_eq!(command.arguments, ["-c", "cat > x"]);
        let hook = both.webhook.as_ref().expect("an address");
        assert_eq!(
            (&*hook.host, hook.port, hook.is_encrypted),
            ("hooks.example.org", 443, true)
        );
        assert_eq!(hook.path.reveal(), "/a/s3cret?b=c");
        assert_eq!(hook.to_string(), "https://hooks.example.org:443/…");
        assert!(!format!("{both:?}").contains("s3cret"));
        assert_eq!(
            (both.complete, both.failed, both.timeout),
            (false, true, Millis(5_000))
        );
        let plain = notify("{url: 'http://127.0.0.1:9000'}").expect("reads");
        assert_eq!(plain.webhook.expect("an address").path.reveal(), "/");
        assert_eq!(
            (plain.complete, plain.failed, plain.timeout),
            (true, true, NOTIFY_TIMEOUT)
        );
    }

    #[test]
    fn what_tells_nobody_or_names_no_program_is_refused() {
        for (block, says) in [
            ("{}", "names nobody to tell"),
            ("{when: [failed]}", "names nobody to tell"),
            ("{command: /bin/sh}", "should be a list"),
            ("{command: []}", "should be a list"),
            ("{command: [sh]}", "the whole path of a program"),
            (
                "{command: [/nowhere/at/all]}",
                "the whole path of a program",
            ),
            ("{command: [/etc/passwd]}", "the whole path of a program"),
            (
                "{command: [/bin/sh], when: []}",
                "a list of complete and failed",
            ),
            (
                "{command: [/bin/sh], when: [ended]}",
                "a list of complete and failed",
            ),
            ("{command: [/bin/sh], timeout: 0s}", "from 1s to 10m"),
            ("{command: [/bin/sh], timeout: 30}", "of what?"),
            (
                "{command: [/bin/sh], token_path: /nowhere}",
                "cannot be read",
            ),
            ("{url: 'ftp://s3cret/'}", "http://host:port/path"),
            ("{url: 'https://user:s3cret@host/'}", "without a user"),
            ("{url: 'https://host/s3cret#x'}", "without a user or a #"),
            ("{url: 'https://host/a?s3cret#x'}", "without a user or a #"),
            (
                "{uri: 'https://host/'}",
                "roomkeeper.notify.uri is not a key",
            ),
        ] {
            let error = notify(block).expect_err(block);
            assert!(error.contains(says), "{block}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
