//! Who asked for a job, and from where, stands in its record and in the log; what proxies say counts where they are trusted.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::support::served::{LOG, Served, listen_to_the_log};
use roomkeeper::config::Network;
use roomkeeper::{JobId, Keeper, PurgeOptions, PurgePoint, RoomId, UserId};
use serde_json::Value;

const TOKEN: &str = "static-token-0123456789";

struct Daemon(Served);

impl Daemon {
    fn start(trusted: &[&str]) -> Self {
        listen_to_the_log(log::LevelFilter::Info);
        Self(Served::start(
            TOKEN,
            |database| crate::sample::create(database, &["a"], 40),
            |config| {
                config.admin_user = UserId::from("@root:example.org");
                config.trusted_proxies = trusted
                    .iter()
                    .map(|text| Network::parse(text).expect("a network"))
                    .collect();
            },
        ))
    }

    /// Asks for a purge, and says who stands in its record.
    fn purge(&self, stream: &mut (impl Read + Write), headers: &str) -> String {
        let room = crate::sample::room_id("a").replace('!', "%21");
        let body = format!(r#"{{"purge_up_to_token": "{}"}}"#, crate::sample::token(5));
        let request = format!(
            "POST /_synapse/admin/v1/purge_history/{room} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let body = answer.split("\r\n\r\n").nth(1).expect("a body");
        let body: Value = serde_json::from_str(body).expect("JSON");
        let id = JobId::from(body["purge_id"].as_str().expect("an id"));
        assert!(
            self.keeper.wait_for(&id, Duration::from_secs(60)),
            "it ends"
        );
        let job = self.keeper.job(&id).expect("read").expect("there");
        job.asked_by.expect("somebody asked")
    }

    fn over_tcp(&self, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.address).expect("connects");
        self.purge(
            &mut stream,
            &format!("Authorization: Bearer {TOKEN}\r\n{headers}"),
        )
    }
}

impl Deref for Daemon {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.0
    }
}

#[test]
fn what_a_stranger_says_of_others_does_not_count() {
    let daemon = Daemon::start(&[]);
    let here = "@root:example.org from 127.0.0.1";
    assert_eq!(daemon.over_tcp(""), here);
    assert_eq!(daemon.over_tcp("X-Forwarded-For: 192.0.2.7\r\n"), here);
    // A name under which the server speaks with its handlers.
    let forged = "X-Roomkeeper-Origin: x tcp 1 192.0.2.7\r\n";
    assert_eq!(daemon.over_tcp(forged), here);
    let mut socket = UnixStream::connect(&daemon.socket).expect("connects");
    let by_socket = daemon.purge(&mut socket, "X-Forwarded-For: 192.0.2.7\r\n");
    assert_eq!(by_socket, "@root:example.org by the socket");
    assert!(LOG.lock().contains(" from=127.0.0.1\n"));
    assert!(!LOG.lock().contains("from=192.0.2.7"));
}

#[test]
fn of_what_proxies_say_after_each_other_the_trusted_part_counts() {
    let daemon = Daemon::start(&["127.0.0.0/8", "10.0.0.0/8", "fd00::/8"]);
    for (headers, from) in [
        ("", "127.0.0.1"),
        ("X-Forwarded-For: 198.51.100.7\r\n", "198.51.100.7"),
        ("x-forwarded-for: 2001:db8::7\r\n", "2001:db8::7"),
        ("X-Forwarded-For: [2001:db8::7]:443\r\n", "2001:db8::7"),
        ("X-Forwarded-For: 198.51.100.7:5555\r\n", "198.51.100.7"),
        // The client wrote the first one itself.
        ("X-Forwarded-For: 1.1.1.1, 198.51.100.7\r\n", "198.51.100.7"),
        (
            "X-Forwarded-For: 1.1.1.1, 198.51.100.7, 10.1.2.3\r\n",
            "198.51.100.7",
        ),
        (
            "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 198.51.100.7, fd00::9\r\n",
            "198.51.100.7",
        ),
        ("X-Forwarded-For: 10.1.2.3, 10.1.2.4\r\n", "10.1.2.3"),
        ("X-Forwarded-For: ::ffff:198.51.100.7\r\n", "198.51.100.7"),
        (
            "X-Forwarded-For: unknown\r\n",
            "an unknown address behind 127.0.0.1",
        ),
        (
            "X-Forwarded-For: 1.1.1.1, , 10.1.2.3\r\n",
            "an unknown address behind 10.1.2.3",
        ),
        (
            "X-Forwarded-For:\r\n",
            "an unknown address behind 127.0.0.1",
        ),
        (
            "X-Forwarded-For: \u{fc}\r\n",
            "an unknown address behind 127.0.0.1",
        ),
        (
            "X-Forwarded-For: <script>, a\tb\r\n",
            "an unknown address behind 127.0.0.1",
        ),
    ] {
        let expected = format!("@root:example.org from {from}");
        assert_eq!(daemon.over_tcp(headers), expected, "{headers}");
        assert!(LOG.lock().contains(&format!(" from={from}\n")), "{from}");
    }
}

#[test]
fn what_nobody_in_particular_asked_for_says_nothing_of_it() {
    let daemon = Daemon::start(&[]);
    let room = RoomId::from(crate::sample::room_id("a").as_str());
    let point = PurgePoint::BeforeToken(crate::sample::token(5));
    let start = |keeper: &Keeper| {
        let id = keeper.purge_history(&room, point.clone(), PurgeOptions::default());
        let id = id.expect("accepted");
        assert!(keeper.wait_for(&id, Duration::from_secs(60)));
        keeper.job(&id).expect("read").expect("there").asked_by
    };
    assert_eq!(start(&daemon.keeper), None);
    let somebody = daemon.keeper.on_behalf_of("a program");
    assert_eq!(start(&somebody).as_deref(), Some("a program"));
    assert_eq!(start(&daemon.keeper), None, "one keeper speaks for one");
}
