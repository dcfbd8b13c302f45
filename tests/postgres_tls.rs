//! Encrypted connections to PostgreSQL, and who is believed to be the server; passwords, and where they come from.

#![cfg(all(feature = "postgres-tls", feature = "daemon"))]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use roomkeeper::database::{Database, Server};
use roomkeeper::store::db::{Db, OpenOptions};
use support::cluster::{Cluster, ROLE, cluster_over_tcp};

/// One test at a time: they change how the server takes people in.
static ALONE: Mutex<()> = Mutex::new(());

const PASSWORD: &str = "hunter2";

/// Encrypted or not, without a password.
const ANYBODY: &str =
    "local all all trust\nhost all all 127.0.0.1/32 trust\nhost all all ::1/128 trust\n";
/// Only encrypted.
const ENCRYPTED: &str = "local all all trust\nhostssl all all all trust\n";
/// Only as it is.
const PLAIN: &str = "local all all trust\nhostnossl all all all trust\n";
/// Only encrypted and with a certificate that has the role's name.
const CERTIFIED: &str = "local all all trust\nhostssl all all all trust clientcert=verify-full\n";
/// Only encrypted and with a password, which is bound to the connection.
const PASSWORDS: &str = "local all all trust\nhostssl all all all scram-sha-256\n";

/// A server with a certificate for `localhost`, and the authority that signed it.
struct Town {
    cluster: &'static Cluster,
    database: String,
    /// What it shows, and the key to it.
    identity: (PathBuf, PathBuf),
    authority: PathBuf,
    /// An authority that signed nothing here.
    stranger: PathBuf,
    /// Certificates of clients and their keys: the role's own, somebody else's, and one for the role that the stranger
    /// signed.
    clients: [(PathBuf, PathBuf); 3],
    directory: tempfile::TempDir,
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
}

fn town() -> Option<&'static Town> {
    static TOWN: OnceLock<Option<Town>> = OnceLock::new();
    let make = || {
        let cluster = cluster_over_tcp()?;
        let directory = tempfile::tempdir().expect("a directory");
        let (ours, stranger) = (authority("ours"), authority("a stranger"));
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let certificate = params.signed_by(&key, &ours).expect("signed");
        let identity = (
            cluster.keep("server.crt", &certificate.pem()),
            cluster.keep("server.key", &key.serialize_pem()),
        );
        cluster.run(&format!("ALTER ROLE {ROLE} PASSWORD '{PASSWORD}'"));
        let write = |name: &str, text: String| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let client = |file: &str, name: &str, signer: &CertifiedIssuer<'static, KeyPair>| {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(Vec::new()).expect("parameters");
            params.distinguished_name = rcgen::DistinguishedName::new();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, name);
            let certificate = params.signed_by(&key, signer).expect("signed");
            (
                write(&format!("{file}.crt"), certificate.pem()),
                write(&format!("{file}.key"), key.serialize_pem()),
            )
        };
        let clients = [
            client("own", ROLE, &ours),
            client("other", "somebody", &ours),
            client("forged", ROLE, &stranger),
        ];
        cluster.keep("ours.pem", &ours.pem());
        let town = Town {
            cluster,
            clients,
            database: cluster.create(cluster.empty()),
            identity,
            authority: write("ours.pem", ours.pem()),
            stranger: write("stranger.pem", stranger.pem()),
            directory,
        };
        town.show(&town.identity);
        Some(town)
    };
    TOWN.get_or_init(make).as_ref()
}

impl Town {
    /// From now on the server encrypts or does not, and takes these in.
    fn serve(&self, ssl: bool, who: &str) {
        let ssl = if ssl { "on" } else { "off" };
        self.cluster.configure(&[("ssl", ssl)], who);
    }

    /// From now on the server shows this certificate.
    fn show(&self, (certificate, key): &(PathBuf, PathBuf)) {
        self.serve(false, ANYBODY);
        let files = [
            ("ssl_cert_file", path(certificate)),
            ("ssl_key_file", path(key)),
        ];
        self.cluster.configure(&files, ANYBODY);
        self.serve(true, ANYBODY);
    }

    fn keys(&self, more: &[(&str, &str)]) -> Database {
        let port = self.cluster.port().to_string();
        let usual = [
            ("host", "localhost"),
            ("port", &port),
            ("user", ROLE),
            ("dbname", &self.database),
        ];
        let all = usual.iter().chain(more);
        let keys: BTreeMap<String, String> = all
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        Database::Server(Server::Keys(keys))
    }

    /// Whether the connection that comes of this is encrypted.
    #[track_caller]
    fn is_encrypted(&self, more: &[(&str, &str)]) -> bool {
        let db = Db::open(self.keys(more), &OpenOptions::default())
            .unwrap_or_else(|e| panic!("{more:?}: {e}"));
        is_encrypted(&db)
    }

    /// What is said where no connection comes of this.
    #[track_caller]
    fn refusal(&self, more: &[(&str, &str)]) -> String {
        match Db::open(self.keys(more), &OpenOptions::default()) {
            Ok(_) => panic!("{more:?} connected"),
            Err(e) => {
                let said = format!(
                    "{e} {:?} {e:?}",
                    std::error::Error::source(&e).map(ToString::to_string)
                );
                assert!(!said.contains(PASSWORD), "{said}");
                said
            }
        }
    }

    /// The program, in a home of its own and with nothing of our surroundings.
    fn check(&self, address: &str, environment: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_roomkeeper"))
            .args([
                "--database",
                address,
                "--server-name",
                "example.org",
                "--offline=assume",
                "check",
            ])
            .env_clear()
            .env("HOME", self.directory.path())
            .envs(environment.iter().copied())
            .output()
            .expect("runs")
    }

    fn address(&self, who: &str) -> String {
        format!(
            "postgres://{who}@localhost:{}/{}",
            self.cluster.port(),
            self.database
        )
    }
}

fn is_encrypted(db: &Db) -> bool {
    let sql =
        "SELECT CAST(count(*) AS BIGINT) FROM pg_stat_ssl WHERE ssl AND pid = pg_backend_pid()";
    db.count("ask", sql, &[]).expect("asked") == 1
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().expect("a path")
}

#[test]
fn every_mode_encrypts_or_does_not_as_libpq_has_it() {
    let _alone = ALONE.lock();
    let Some(town) = town() else { return };
    town.serve(true, ANYBODY);
    assert!(!town.is_encrypted(&[("sslmode", "disable")]));
    assert!(!town.is_encrypted(&[("sslmode", "allow")]));
    assert!(town.is_encrypted(&[]), "prefer is what goes without saying");
    assert!(town.is_encrypted(&[("sslmode", "prefer")]));
    assert!(town.is_encrypted(&[("sslmode", "require")]));
    let root = ("sslrootcert", path(&town.authority));
    assert!(town.is_encrypted(&[("sslmode", "verify-ca"), root]));
    assert!(town.is_encrypted(&[("sslmode", "verify-full"), root]));
    // Where the server takes nobody else.
    town.serve(true, ENCRYPTED);
    assert!(town.is_encrypted(&[("sslmode", "allow")]));
    assert!(town.refusal(&[("sslmode", "disable")]).contains("28000"));
    town.serve(true, PLAIN);
    assert!(!town.is_encrypted(&[("sslmode", "prefer")]));
    assert!(town.refusal(&[("sslmode", "require")]).contains("28000"));
}

#[test]
fn a_server_that_does_not_encrypt_is_refused_where_that_was_required() {
    let _alone = ALONE.lock();
    let Some(town) = town() else { return };
    town.serve(false, ANYBODY);
    assert!(!town.is_encrypted(&[("sslmode", "prefer")]));
    let password = ("password", PASSWORD);
    for mode in ["require", "verify-full"] {
        let root = ("sslrootcert", path(&town.authority));
        let said = town.refusal(&[("sslmode", mode), root, password]);
        assert!(said.contains("server does not support TLS"), "{said}");
    }
}

#[test]
fn a_server_that_is_somebody_else_is_refused() {
    let _alone = ALONE.lock();
    let Some(town) = town() else { return };
    town.serve(true, ANYBODY);
    let (ours, stranger) = (
        ("sslrootcert", path(&town.authority)),
        ("sslrootcert", path(&town.stranger)),
    );
    for mode in ["require", "verify-ca", "verify-full"] {
        let said = town.refusal(&[("sslmode", mode), stranger, ("password", PASSWORD)]);
        assert!(said.contains("invalid peer certificate"), "{said}");
    }
    // The right authority, and another host.
    let elsewhere = ("host", "127.0.0.1");
    assert!(town.is_encrypted(&[("sslmode", "verify-ca"), ours, elsewhere]));
    let said = town.refusal(&[("sslmode", "verify-full"), ours, elsewhere]);
    assert!(
        said.contains("not valid for name") && said.contains("localhost"),
        "{said}"
    );
    let said = town.refusal(&[("sslmode", "verify-ca"), ("sslrootcert", "/no/such/file")]);
    assert!(said.contains("sslrootcert: /no/such/file"), "{said}");
    let said = town.refusal(&[("sslmode", "verify-full"), ("sslrootcert", "system")]);
    assert!(said.contains("certificate"), "{said}");
}

#[test]
fn a_certificate_that_signed_itself_is_trusted_when_it_is_the_one_that_was_named() {
    let _alone = ALONE.lock();
    let Some(town) = town() else { return };
    // As PostgreSQL's manual makes one: an authority that is the server as well.
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("signed").pem();
    let its_own = (
        town.cluster.keep("itself.crt", &certificate),
        town.cluster.keep("itself.key", &key.serialize_pem()),
    );
    let named = town.directory.path().join("self.pem");
    std::fs::write(&named, certificate).expect("written");
    town.show(&its_own);
    let root = ("sslrootcert", path(&named));
    let trusted = Db::open(
        town.keys(&[("sslmode", "verify-full"), root]),
        &OpenOptions::default(),
    );
    let stranger = ("sslrootcert", path(&town.authority));
    let refused = Db::open(
        town.keys(&[("sslmode", "verify-ca"), stranger]),
        &OpenOptions::default(),
    );
    town.show(&town.identity);
    assert!(is_encrypted(&trusted.expect("trusted")));
    assert!(refused.is_err(), "another authority's word was taken");
}

#[test]
fn a_server_that_wants_to_see_our_certificate_sees_it() {
    let _alone = ALONE.lock();
    let Some(town) = town() else { return };
    let trusted = path(&town.identity.0).replace("server.crt", "ours.pem");
    town.cluster
        .configure(&[("ssl", "on"), ("ssl_ca_file", &trusted)], CERTIFIED);
    let shown = |n: usize| {
        let (certificate, key) = &town.clients[n];
        [
            ("sslmode", "require"),
            ("sslcert", path(certificate)),
            ("sslkey", path(key)),
        ]
    };
    let nobody = town.refusal(&[("sslmode", "require")]);
    assert!(nobody.contains("28000"), "{nobody}");
    assert!(town.is_encrypted(&shown(0)));
    let somebody = town.refusal(&shown(1));
    assert!(somebody.contains("28000"), "{somebody}");
    town.refusal(&shown(2));
    // One without the other is a slip of the pen.
    for (n, missing) in [(1, "sslkey is not"), (2, "sslcert is not")] {
        let half = town.refusal(&[shown(0)[0], shown(0)[n]]);
        assert!(half.contains(missing), "{half}");
    }
    let [mode, certificate, _] = shown(0);
    let unread = town.refusal(&[mode, certificate, ("sslkey", "/no/such/file")]);
    assert!(unread.contains("sslkey: /no/such/file"), "{unread}");
    town.serve(true, ANYBODY);
}

#[test]
fn a_statement_is_stopped_over_an_encrypted_connection_too() {
    let _alone = ALONE.lock();
    let Some(town) = town() else { return };
    town.serve(true, ENCRYPTED);
    let db = Db::open(
        town.keys(&[("sslmode", "require")]),
        &OpenOptions::default(),
    );
    let db = db.expect("connects");
    let handle = db.interrupt_handle();
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(200));
            handle.interrupt();
        });
        let slept = db.execute("sleep", "SELECT pg_sleep(60)", &[]);
        assert!(slept.is_err(), "it slept to its end");
    });
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn passwords_come_from_where_nobody_else_reads_them() {
    let _alone = ALONE.lock();
    let Some(town) = town() else { return };
    town.serve(true, PASSWORDS);
    assert!(town.is_encrypted(&[("sslmode", "require"), ("password", PASSWORD)]));
    let said = town.refusal(&[("sslmode", "require"), ("password", "hunter2-is-wrong")]);
    assert!(said.contains("28P01"), "{said}");
    let without = town.address(ROLE);
    let text = |ran: &Output| {
        format!(
            "{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        )
    };
    let refused = town.check(&without, &[]);
    assert!(!refused.status.success(), "{}", text(&refused));
    let given = town.check(&without, &[("PGPASSWORD", PASSWORD)]);
    assert!(given.status.success(), "{}", text(&given));
    let aside = String::from_utf8_lossy(&given.stderr);
    assert!(
        aside
            .lines()
            .all(|line| line.starts_with("roomkeeper: looked at ")),
        "{}",
        text(&given)
    );
    let file = town.directory.path().join(".pgpass");
    std::fs::write(&file, format!("localhost:*:*:{ROLE}:{PASSWORD}\n")).expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set");
    let read = town.check(&without, &[]);
    assert!(read.status.success(), "{}", text(&read));
    // One that others may read is not read, and that is said.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("set");
    let refused = town.check(&without, &[("PGSSLMODE", "require")]);
    assert!(!refused.status.success(), "{}", text(&refused));
    assert!(text(&refused).contains("chmod 600"), "{}", text(&refused));
    std::fs::remove_file(file).expect("removed");
    // On the command line it works, with a word about it.
    let shown = town.check(&town.address(&format!("{ROLE}:{PASSWORD}")), &[]);
    assert!(shown.status.success(), "{}", text(&shown));
    assert!(
        text(&shown).contains("can read the password"),
        "{}",
        text(&shown)
    );
    assert!(!text(&shown).contains(PASSWORD), "{}", text(&shown));
    let wrong = town.check(&town.address(&format!("{ROLE}:{PASSWORD}x")), &[]);
    assert!(
        !wrong.status.success() && !text(&wrong).contains(PASSWORD),
        "{}",
        text(&wrong)
    );
}
