//! Passwords that stand neither in a configuration nor on a command line, where libpq looks for them.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The line that fits `host`, `port`, `database` and `user` of the named file, or of `~/.pgpass`: a way to give a
/// password that nobody else can see.
pub(super) fn in_file(named: Option<&Path>, wanted: [&str; 4]) -> Option<String> {
    let usual = || Some(Path::new(&std::env::var_os("HOME")?).join(".pgpass"));
    let file: PathBuf = named.map(Path::to_owned).or_else(usual)?;
    line_that_fits(&read(&file)?, wanted)
}

/// A file that others may read holds no password for us, as for libpq.
fn read(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let about = file.metadata().ok()?;
    if !about.is_file() {
        return None;
    }
    if about.mode() & 0o077 != 0 {
        log::warn!(
            "{} is not read for a password, because others may read it, too: chmod 600 it",
            path.display()
        );
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    Some(text)
}

/// `host:port:database:user:password`, each but the last may be `*`; a backslash goes before a colon that is meant.
fn line_that_fits(text: &str, wanted: [&str; 4]) -> Option<String> {
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let mut fields = Vec::new();
        let (mut field, mut letters) = (String::new(), line.chars());
        while let Some(letter) = letters.next() {
            match letter {
                '\\' => field.extend(letters.next()),
                ':' if fields.len() < 4 => fields.push(std::mem::take(&mut field)),
                letter => field.push(letter),
            }
        }
        fields.push(field);
        let fits = wanted
            .iter()
            .zip(&fields)
            .all(|(wanted, field)| field == "*" || field == wanted);
        if fields.len() == 5 && fits {
            return fields.pop();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_line_of_pgpass_that_fits_is_found() {
        let text = "# passwords\nh:5432:d:u:first\n*:*:*:u:a\\:b\\\\c:d\n";
        let found = |wanted| line_that_fits(text, wanted);
        assert_eq!(found(["h", "5432", "d", "u"]).as_deref(), Some("first"));
        assert_eq!(found(["x", "1", "d", "u"]).as_deref(), Some("a:b\\c:d"));
        assert_eq!(found(["x", "1", "d", "v"]), None);
    }

    #[test]
    fn a_file_that_others_may_read_holds_no_password() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pgpass");
        fs::write(&path, "*:*:*:*:hunter2").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        assert_eq!(read(&path), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        assert_eq!(read(&path).as_deref(), Some("*:*:*:*:hunter2"));
    }
}
