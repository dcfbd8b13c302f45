//! Keys of archives: to public ones they are encrypted, private ones are only ever given for reading.

use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use crate::error::Error;

/// A public key, `age1…`. Who has it alone can read nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(pub(super) age::x25519::Recipient);

impl FromStr for Recipient {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.trim().parse().map(Self)
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A private key, `AGE-SECRET-KEY-1…`. It is never shown.
#[derive(Clone)]
pub struct Identity(pub(super) age::x25519::Identity);

impl Identity {
    /// A new one.
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// Its public key.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// The private keys in a file as `age-keygen` writes it: one a line, comments begin with `#`.
    ///
    /// # Errors
    /// [`Error::Config`] where it cannot be read or holds anything else. No message holds a key.
    pub fn read(file: &Path) -> Result<Vec<Self>, Error> {
        let refuse = |why: &dyn fmt::Display| Error::Config(format!("{}: {why}", file.display()));
        let text = fs::read_to_string(file).map_err(|e| refuse(&e))?;
        let lines = text.lines().map(str::trim).enumerate();
        let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let keys: Result<Vec<Self>, Error> = keys
            .map(|(n, line)| {
                let key = line.parse().map(Self);
                key.map_err(|_| refuse(&format!("line {} is no AGE-SECRET-KEY-1…", n + 1)))
            })
            .collect();
        match keys? {
            keys if keys.is_empty() => Err(refuse(&"there is no key in it")),
            keys => Ok(keys),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(…)")
    }
}
