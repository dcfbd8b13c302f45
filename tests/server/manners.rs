//! One client at a time: what is served, what is refused, and in which words.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use roomkeeper::client::Client as OneShot;
use roomkeeper::config::Listen;
use roomkeeper::http::server::handler_request::Answers;
use roomkeeper::http::server::limits::{Limits, MAX_BODY};
use roomkeeper::http::server::{Backend, Server as HttpFrontend};

use crate::support::{Client, PATIENCE, Server, answer, loopback, short};

#[test]
fn several_requests_follow_each_other_on_one_connection() {
    let server = Server::start(Limits::default());
    let mut client = server.connect();
    for number in 0..5 {
        let answer = client.post(&format!("/{number}"), &vec![b'x'; number * 10_000]);
        assert_eq!(answer.status, 200);
        assert!(!answer.closes());
        assert_eq!(answer.json()["body"], number * 10_000);
        assert_eq!(answer.json()["target"], format!("/{number}"));
    }
    assert_eq!(server.count(), 5);
}

#[test]
fn a_connection_ends_after_so_many_requests_and_says_so() {
    let server = Server::start(Limits {
        requests_per_connection: 3,
        ..Limits::default()
    });
    let mut client = server.connect();
    let closes: Vec<bool> = (0..3).map(|_| client.get("/").closes()).collect();
    assert_eq!(closes, [false, false, true]);
    assert!(client.is_over());
}

#[test]
fn a_client_that_wants_to_close_is_closed() {
    let server = Server::start(Limits::default());
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
    ] {
        let mut client = server.connect();
        client.send(request);
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.closes()), (200, true));
        assert!(client.is_over());
    }
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let server = Server::start(Limits::default());
    let mut client = server.connect();
    for byte in b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world" {
        client.send([*byte]);
    }
    let answer = client.answer().unwrap();
    assert_eq!(answer.json()["body"], 11);
    assert!(!answer.closes(), "its manners were odd and not bad");
}

#[test]
fn a_client_that_stops_sending_still_gets_its_answer() {
    let server = Server::start(Limits::default());
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer().unwrap().status, 200);
    assert!(client.is_over());
}

#[test]
fn a_body_of_one_mebibyte_is_read_and_one_byte_more_is_not() {
    let server = Server::start(Limits::default());
    let answer = server.connect().post("/", &vec![b'x'; MAX_BODY]);
    assert_eq!(answer.json()["body"], MAX_BODY);

    let mut client = server.connect();
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n",
        MAX_BODY + 1
    ));
    client.try_send(vec![b'x'; MAX_BODY + 1]);
    let answer = client
        .answer()
        .expect("the answer survives the bytes that nobody read");
    assert_eq!((answer.status, answer.closes()), (413, true));
    assert_eq!(answer.json()["errcode"], "M_TOO_LARGE");
    assert_eq!(server.count(), 1);
}

#[test]
fn a_length_that_would_abort_tiny_http_does_nothing() {
    let server = Server::start(Limits::default());
    for length in [
        "99999999999999",
        "18446744073709551615",
        "340282366920938463463374607431768211456",
    ] {
        let mut client = server.connect();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{{}}"
        ));
        assert_eq!(client.answer().unwrap().status, 413);
        assert!(client.is_over());
    }
    assert_eq!(server.count(), 0);
    assert_eq!(server.connect().get("/").status, 200);
}

#[test]
fn no_second_request_runs_that_the_first_did_not_wait_for() {
    let server = Server::start(Limits::default());
    let evil = "GET /evil HTTP/1.1\r\nHost: a\r\n\r\n";
    let head = "POST /first HTTP/1.1\r\nHost: a\r\n";
    let attempts = [
        // Pipelining: the first is answered.
        (format!("{head}Content-Length: 0\r\n\r\n{evil}"), 200),
        (format!("{head}\r\n{evil}{evil}"), 200),
        (format!("{head}Content-Length: 2\r\n\r\n{{}}{evil}"), 200),
        (
            format!("{head}Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello{evil}"),
            200,
        ),
        (
            format!("{head}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}{evil}"),
            200,
        ),
        // Two readings: nothing runs.
        (
            format!(
                "{head}Content-Length: 0\r\nContent-Length: {}\r\n\r\n{evil}",
                evil.len()
            ),
            400,
        ),
        (
            format!(
                "{head}Content-Length: {}\r\nContent-Length: 0\r\n\r\n{evil}",
                evil.len()
            ),
            400,
        ),
        (
            format!("{head}Content-Length: 0, {}\r\n\r\n{evil}", evil.len()),
            400,
        ),
        (format!("{head}Content-Length: +0\r\n\r\n{evil}"), 400),
        (format!("{head}Content-Length: abc\r\n\r\n{evil}"), 400),
        (
            format!("{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{evil}"),
            400,
        ),
        (
            format!("{head}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n{evil}"),
            400,
        ),
        (
            format!("{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{evil}"),
            200,
        ),
        (
            format!("{head}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n{evil}"),
            200,
        ),
        (
            format!("{head}Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n{evil}"),
            400,
        ),
        (
            format!("{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{evil}"),
            501,
        ),
        (
            format!("{head}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{evil}"),
            400,
        ),
        (
            format!("{head}X: y\r\n Content-Length: 9\r\n\r\n{evil}"),
            400,
        ),
        (format!("{head}X: y\nContent-Length: 9\r\n\r\n{evil}"), 400),
        (format!("{head}Content-Length\0: 9\r\n\r\n{evil}"), 400),
        (format!("nonsense\r\n\r\n{evil}"), 400),
    ];
    let mut firsts = 0;
    for (bytes, status) in attempts {
        let mut client = server.connect();
        client.send(&bytes);
        let mut answer = client
            .answer()
            .unwrap_or_else(|| panic!("no answer to {bytes}"));
        if answer.status == 100 {
            answer = client.answer().unwrap();
        }
        assert_eq!((answer.status, answer.closes()), (status, true), "{bytes}");
        assert!(client.is_over(), "{bytes}");
        firsts += usize::from(status == 200);
        assert_eq!(server.count(), firsts, "{bytes}");
    }
}

/// Whatever a client sends in one go, at most one request comes of it, and the http stands.
#[test]
fn one_burst_of_bytes_is_at_most_one_request() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};

    let pieces: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: 29\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"\n",
        b"0\r\n\r\n",
        b"{}",
        b"\0",
        b"abcd",
    ];
    let burst = proptest::collection::vec(proptest::sample::select(pieces), 1..8);
    let server = Server::start(Limits::default());
    let mut runner = TestRunner::new(Config {
        cases: 300,
        ..Config::default()
    });
    let result = runner.run(&burst, |pieces| {
        let before = server.count();
        let mut client = server.connect();
        client.send(pieces.concat());
        client.stream.shutdown(Shutdown::Write).unwrap();
        while client.answer().is_some() {}
        prop_assert!(server.count() - before <= 1);
        Ok(())
    });
    result.unwrap();
    assert!(server.count() > 10, "some of them were requests");
    assert_eq!(server.connect().get("/").status, 200);
}

#[test]
fn bytes_that_come_before_the_answer_end_the_connection_with_it() {
    let (release, released) = bounded::<()>(0);
    let server = Server::start_with(Limits::default(), &[loopback()], move |request| {
        let _ = released.recv_timeout(PATIENCE);
        answer(request)
    });
    let mut client = server.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until(|| server.count() == 1);
    client.send("GET /evil HTTP/1.1\r\nHost: a\r\n\r\n");
    // The server and the handler run apart: the bytes are at the server when a later client's are.
    let mut later = server.connect();
    later.send("nonsense\r\n\r\n");
    assert_eq!(later.answer().unwrap().status, 400);
    release.send(()).unwrap();
    assert!(client.answer().unwrap().closes());
    assert!(client.is_over());
    assert_eq!(server.count(), 1);
}

#[test]
fn a_client_that_waits_to_send_its_body_is_told_to_go_on() {
    let server = Server::start(Limits::default());
    let mut client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.answer().unwrap().status, 100);
    client.send("hello");
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.closes()), (200, false));

    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n",
    );
    assert_eq!(client.answer().unwrap().status, 413, "before it sends them");
    client = server.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: much\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.answer().unwrap().status, 417);
}

#[test]
fn an_answer_to_head_has_no_body() {
    let server = Server::start(Limits::default());
    let mut client = server.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.answer_to(true).unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("Content-Length: "));
    assert_eq!(client.get("/next").json()["target"], "/next");
}

#[test]
fn a_panic_in_a_handler_answers_500_and_the_next_request_is_served() {
    let server = Server::start(Limits::default());
    let mut client = server.connect();
    for _ in 0..20 {
        let answer = client.get("/panic");
        assert_eq!(answer.status, 500);
        assert_eq!(
            answer.json(),
            serde_json::json!({
                "errcode": "M_UNKNOWN", "error": "Internal server error", "error_code": "bug"
            })
        );
    }
    assert_eq!(client.get("/").status, 200);
    assert!(server.http.broken().is_empty());
}

#[test]
fn a_head_must_be_whole_in_time_however_it_trickles() {
    let server = Server::start(short());
    let mut client = server.connect();
    let begun = Instant::now();
    client.send("GET / HTTP/1.1\r\n");
    while begun.elapsed() < Duration::from_millis(600) {
        client.try_send("X: y\r\n");
        std::thread::sleep(Duration::from_millis(20));
    }
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.closes()), (408, true));
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(answer.json()["errcode"], "M_UNKNOWN");
}

#[test]
fn a_body_must_be_whole_in_time_and_a_silent_client_is_told_nothing() {
    let server = Server::start(short());
    let mut slow = server.connect();
    slow.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell");
    let mut silent = server.connect();
    let mut idle = server.connect();
    assert!(!idle.get("/").closes());
    assert_eq!(slow.answer().unwrap().status, 408);
    assert!(slow.is_over() && silent.is_over() && idle.is_over());
}

#[test]
fn when_all_handlers_are_busy_few_wait_and_not_for_ever() {
    let (release, released) = bounded::<()>(0);
    let limits = Limits {
        handler_requests: 2,
        waiting: 1024,
        ..short()
    };
    let server = Server::start_with(limits, &[loopback()], move |request| {
        let _ = released.recv_timeout(PATIENCE);
        answer(request)
    });
    let mut clients: Vec<_> = (0..6).map(|_| server.connect()).collect();
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for client in &mut clients[..2] {
        client.send(request);
    }
    wait_until(|| server.count() == 2);
    for client in &mut clients[2..] {
        client.send(request);
    }
    let begun = Instant::now();
    let refused: Vec<_> = clients[2..]
        .iter_mut()
        .map(|client| client.answer().unwrap())
        .collect();
    assert!(
        refused
            .iter()
            .all(|answer| answer.status == 429 && answer.json()["errcode"] == "M_LIMIT_EXCEEDED")
    );
    assert!(begun.elapsed() < Duration::from_secs(3));
    for _ in 0..2 {
        release.send(()).unwrap();
    }
    assert!(
        clients[..2]
            .iter_mut()
            .all(|client| client.answer().unwrap().status == 200)
    );
    assert_eq!(server.count(), 2, "a refused request is never run");
}

#[test]
fn a_client_that_leaves_does_not_free_its_handler_early() {
    let (release, released) = bounded::<()>(0);
    let limits = Limits {
        handler_requests: 1,
        ..Limits::default()
    };
    let server = Server::start_with(limits, &[loopback()], move |request| {
        if request.target == "/wait" {
            let _ = released.recv_timeout(PATIENCE);
        }
        answer(request)
    });
    let mut leaving = server.connect();
    leaving.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until(|| server.count() == 1);
    drop(leaving);
    let mut next = server.connect();
    next.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(server.count(), 1);
    release.send(()).unwrap();
    assert_eq!(next.answer().unwrap().status, 200);
}

#[test]
fn the_handlers_learn_from_the_gate_alone_by_which_door_a_request_came() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let path = directory.path().join("control.sock");
    let listen = [loopback(), Listen::Unix(path.clone())];
    let server = Server::start_with(Limits::default(), &listen, answer);
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Roomkeeper-Origin: guess unix\r\nx-roomkeeper-http: unix\r\n\
        Authorization: Bearer a\r\nauthorization: b\r\n\r\n";
    let mut over_tcp = server.connect();
    over_tcp.send(request);
    let seen = over_tcp.answer().unwrap().json();
    assert_eq!(seen["origin"], "tcp");
    assert_eq!(seen["authorization"], serde_json::json!(["Bearer a", "b"]));
    let mut over_unix = Client::new(UnixStream::connect(&path).unwrap());
    over_unix.send(request);
    assert_eq!(over_unix.answer().unwrap().json()["origin"], "unix");
    server.http.stop();
    assert!(!path.exists());
}

#[test]
fn our_own_client_asks_over_tcp_and_over_the_socket_file() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let path = directory.path().join("control.sock");
    let listen = [loopback(), Listen::Unix(path.clone())];
    let server = Server::start_with(Limits::default(), &listen, answer);

    let over_tcp = OneShot::tcp(server.address.to_string(), "t0ken");
    let reply = over_tcp
        .post("/x?y=%20", &serde_json::json!({"a": 1}))
        .unwrap();
    let expected = serde_json::json!({
        "method": "POST", "target": "/x?y=%20", "origin": "tcp", "authorization": ["Bearer t0ken"], "body": 7
    });
    assert_eq!((reply.status, reply.body), (200, expected));

    let reply = OneShot::unix(&path).get("/").unwrap();
    assert_eq!(reply.body["origin"], "unix");
    assert_eq!(reply.body["authorization"], serde_json::json!([]));
    assert_eq!(OneShot::unix(&path).get("/panic").unwrap().status, 500);
}

#[test]
fn stopping_waits_for_no_idle_client_and_lets_a_request_finish() {
    let (begun, has_begun) = bounded::<()>(1);
    let server = Server::start_with(Limits::default(), &[loopback()], move |request| {
        if request.target == "/work" {
            begun.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(300));
        }
        answer(request)
    });
    let mut idle: Vec<_> = (0..100).map(|_| server.connect()).collect();
    idle[0].send("GET / HT");
    idle[1].get("/");
    let mut working = server.connect();
    working.send("GET /work HTTP/1.1\r\nHost: a\r\n\r\n");
    has_begun.recv_timeout(PATIENCE).unwrap();
    let asked = Instant::now();
    let Server { http, requests, .. } = server;
    http.stop();
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    let answer = working.answer().unwrap();
    assert_eq!((answer.status, answer.closes()), (200, true));
    assert!(idle[2..].iter_mut().all(Client::is_over));
    assert_eq!(
        std::sync::Arc::strong_count(&requests),
        1,
        "every thread that held the handler is gone"
    );
    assert_eq!(requests.load(Ordering::SeqCst), 2);
}

#[test]
fn stopping_does_not_wait_for_a_client_that_does_not_read() {
    let server = Server::start(Limits {
        stop: Duration::from_millis(300),
        ..Limits::default()
    });
    let mut client = server.connect();
    client.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until(|| server.count() == 1);
    let asked = Instant::now();
    server.http.stop();
    assert!(asked.elapsed() < Duration::from_secs(2));
}

#[test]
fn handlers_that_are_gone_are_reported_and_answered_503() {
    let (report, broken) = bounded(1);
    let nowhere = std::env::temp_dir().join("roomkeeper-nowhere.sock");
    let (answers, answered) = Answers::new().unwrap();
    let backend = Backend {
        socket: nowhere,
        secret: "secret".into(),
        answers,
        broken: report,
    };
    let limits = Limits::default();
    let server = HttpFrontend::open(&[loopback()], limits, backend, answered).unwrap();
    let answer = Client::tcp(server.addresses()[0]).get("/");
    assert_eq!(answer.status, 503);
    assert!(broken.recv_timeout(PATIENCE).unwrap().contains("gone"));
}

#[test]
fn a_body_in_chunks_is_read_and_the_connection_goes_on() {
    let server = Server::start(Limits::default());
    let mut client = server.connect();
    for (chunks, length) in [
        ("0\r\n\r\n", 0),
        ("2\r\n{}\r\n0\r\n\r\n", 2),
        ("5;x=y\r\n{\"a\":\r\n2\r\n1}\r\n000\r\nX: y\r\n\r\n", 7),
    ] {
        client.send("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        for piece in chunks.as_bytes().chunks(3) {
            client.send(std::str::from_utf8(piece).unwrap());
        }
        let answer = client.answer().unwrap();
        assert_eq!((answer.status, answer.closes()), (200, false));
        assert_eq!(answer.json()["body"], length);
    }
    // As a client that asks first sends it.
    client.send(
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.answer().unwrap().status, 100);
    client.send("1\r\nx\r\n0\r\n\r\n");
    assert_eq!(client.answer().unwrap().json()["body"], 1);
    // Larger than any may be.
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n100001\r\n");
    assert_eq!(client.answer().unwrap().status, 413);
    let mut old = server.connect();
    old.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(old.answer().unwrap().status, 200);
}

#[test]
fn every_answer_tells_browsers_that_they_may_read_it() {
    let server = Server::start(short());
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /panic HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "nonsense\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: ",
    ] {
        let mut client = server.connect();
        client.send(request);
        let answer = client.answer().unwrap();
        assert!(
            answer.head.contains("Access-Control-Allow-Origin: *"),
            "{request:?}: {answer:?}"
        );
    }
}

#[test]
fn a_reading_ends_with_its_time_and_when_its_client_has_gone() {
    let limits = Limits {
        read: Duration::from_millis(300),
        read_after_end: Duration::from_millis(100),
        ..Limits::default()
    };
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    let server = Server::start_with(limits, &[loopback()], move |request| {
        let begun = Instant::now();
        while !request.limit.is_over() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        count.fetch_add(usize::from(request.limit.is_over()), Ordering::SeqCst);
        answer(request)
    });
    let begun = Instant::now();
    assert_eq!(server.connect().get("/").status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let begun = Instant::now();
    let mut leaving = server.connect();
    leaving.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until(|| server.count() == 2);
    drop(leaving);
    wait_until(|| ended.load(Ordering::SeqCst) == 2);
    println!("the second ended after {:?}", begun.elapsed());
}

#[test]
fn a_client_that_never_reads_holds_no_handler() {
    let limits = Limits {
        handler_requests: 1,
        wait: PATIENCE,
        ..short()
    };
    let server = Server::start(limits);
    let mut deaf: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for client in &mut deaf {
        client.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    wait_until(|| server.count() == 4);
    let begun = Instant::now();
    assert_eq!(server.connect().get("/").status, 200);
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    // Its time to read is over some day, and then the connection is.
    std::thread::sleep(Duration::from_millis(1200));
    let sent = deaf[0].stream.write(b"x").and_then(|_| {
        std::thread::sleep(Duration::from_millis(50));
        deaf[0].stream.write(b"x")
    });
    assert!(sent.is_err(), "the server has closed it");
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}
