//! Files and disks: what `reclaim` makes of a file, who may read what, and disks that are full.
//!
//! What is done here to files has no subject on PostgreSQL.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use roomkeeper::Error;
use support::draft::{Draft, Event};
use support::tables::assert_same;
use support::work::{Ask, Site};

const ROOM: &str = "!room:example.org";

/// A room with messages of a few hundred bytes, all but the last of which a purge takes.
fn site_of(messages: i64) -> Site {
    let mut draft = Draft::new("example.org", 1);
    draft.open_room(ROOM, "a", "@ann:example.org", 2);
    let mut before = "$a-join".to_owned();
    for n in 0..messages {
        let id = format!("$m{n}");
        let mut event =
            Event::message(&id, ROOM, "@rita:remote.example", 3 + n, 10 + n).after(&[&before]);
        event.body = format!("number{n} {}", "la ".repeat(100));
        draft.add(event);
        before = id;
    }
    Site::of(draft)
}

/// Where most of it is gone, and the space is still the file's.
fn purged(messages: i64) -> Site {
    let site = site_of(messages);
    site.purge(&Ask::all_of(ROOM, 3 + messages - 1))
        .expect("purged");
    site
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o7777
}

/// A directory on a disk, where files have ACLs: in memory they have none on some kernels.
fn on_disk(site: &Site) -> (tempfile::TempDir, Site) {
    let directory = tempfile::tempdir().expect("a directory");
    let database = directory.path().join("homeserver.db");
    fs::copy(&site.database, &database).expect("copied");
    let copy = Site::at(&database, &site.server_name);
    (directory, copy)
}

/// An access control list as the kernel takes it: the owner, one more user, the group, the mask, others.
fn acl(user: u32) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0];
    for (tag, rights, id) in [
        (0x01_u16, 6_u16, u32::MAX),
        (0x02, 4, user),
        (0x04, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let length = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) -> bool {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).is_ok()
}

#[test]
fn the_new_file_has_the_mode_owner_acls_and_attributes_of_the_old_one_and_no_others() {
    const ACL: &str = "system.posix_acl_access";
    let source = purged(300);
    for via in [false, true] {
        for has_acl in [false, true] {
            let (directory, site) = on_disk(&source);
            let elsewhere = tempfile::tempdir().expect("a directory");
            fs::set_permissions(&site.database, fs::Permissions::from_mode(0o640)).expect("set");
            let is_root = rustix::process::geteuid().is_root();
            if is_root {
                chown(&site.database, Some(65_534), Some(65_534)).expect("given away");
            }
            let mut told = set_attribute(&site.database, "user.backup", b"nightly");
            if has_acl {
                told &= set_attribute(&site.database, ACL, &acl(1_234));
            }
            // What is made here is readable to somebody else, by default.
            for place in [directory.path(), elsewhere.path()] {
                told &= set_attribute(place, "system.posix_acl_default", &acl(4_321));
            }
            if !told {
                println!("NOT TESTED: this file system has no ACLs or no attributes");
            }
            let expected = (mode_of(&site.database), attribute(&site.database, ACL));
            assert_eq!(expected.1.is_some(), has_acl && told);
            let config = site.config();
            let reclaimed = match via {
                true => roomkeeper::keeper::reclaim_via(&config, elsewhere.path()),
                false => roomkeeper::keeper::reclaim(&config),
            }
            .expect("reclaimed");
            assert!(reclaimed.bytes_after < reclaimed.bytes_before);
            let about = format!("via {via}, ACL {has_acl}");
            let got = (mode_of(&site.database), attribute(&site.database, ACL));
            assert_eq!(got, expected, "{about}");
            if told {
                let backup = attribute(&site.database, "user.backup");
                assert_eq!(backup.as_deref(), Some(&b"nightly"[..]), "{about}");
            }
            if is_root {
                let metadata = fs::metadata(&site.database).expect("there");
                assert_eq!(
                    (metadata.uid(), metadata.gid()),
                    (65_534, 65_534),
                    "{about}"
                );
            }
            assert_eq!(fs::read_dir(elsewhere.path()).expect("read").count(), 0);
            assert!(!site.database.is_symlink());
            assert_same(&source.tables(), &site.tables(), &about);
            site.assert_sound(&about);
        }
    }
}

#[test]
fn a_file_with_two_names_is_refused_and_stays() {
    let site = purged(20);
    let other = site.directory().join("other-name.db");
    fs::hard_link(&site.database, &other).expect("linked");
    let before = fs::read(&site.database).expect("read");
    for via in [None, Some(site.directory())] {
        let refused = match via {
            Some(directory) => roomkeeper::keeper::reclaim_via(&site.config(), directory),
            None => roomkeeper::keeper::reclaim(&site.config()),
        };
        let refused = refused.expect_err("two names");
        assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
        assert!(refused.to_string().contains("2 names"), "{refused}");
    }
    let inode = |path: &PathBuf| fs::metadata(path).expect("there").ino();
    assert_eq!(inode(&site.database), inode(&other));
    assert_eq!(before.len(), fs::read(&site.database).expect("read").len());
    fs::remove_file(&other).expect("removed");
    roomkeeper::keeper::reclaim(&site.config()).expect("reclaimed");
    site.assert_sound("one name");
}

/// The configuration may name a link, and keeps it.
#[test]
fn a_link_to_the_database_stays_a_link_through_another_directory_too() {
    let site = purged(100);
    let link = site.directory().join("link.db");
    std::os::unix::fs::symlink("homeserver.db", &link).expect("linked");
    let elsewhere = tempfile::tempdir_in(site.directory()).expect("a directory");
    let at_link = Site::at(&link, &site.server_name);
    let before = at_link.tables();
    let reclaimed = roomkeeper::keeper::reclaim_via(&at_link.config(), elsewhere.path());
    let reclaimed = reclaimed.expect("reclaimed");
    assert!(reclaimed.bytes_after < reclaimed.bytes_before);
    assert_eq!(
        fs::read_link(&link).expect("a link"),
        Path::new("homeserver.db")
    );
    assert!(!site.database.is_symlink());
    assert_same(&before, &site.tables(), "the same");
}
