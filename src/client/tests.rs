//! Answers of every kind, from somebody who says one thing to everybody.

use super::*;
use std::net::TcpListener;

/// Someone who says one thing to everybody.
fn canned_server(words: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let _ = stream.write_all(words);
        let _ = stream.read(&mut [0; 1024]);
    });
    address
}

#[test]
fn an_answer_in_chunks_is_joined() {
    let words = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n5;x=y\r\n\": 1}\r\n0\r\n\r\n";
    let reply = Client::tcp(canned_server(words), "t")
        .get("/")
        .expect("whole");
    assert_eq!(
        (reply.status, reply.body),
        (200, serde_json::json!({"a": 1}))
    );
}

#[test]
fn an_answer_is_read_to_its_own_end_and_not_until_the_connection_is_closed() {
    for words in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{\"a\": 1}"[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n8\r\n{\"a\": 1}\r\n0\r\n\r\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.write_all(words).expect("written");
            let _ = wait.recv();
        });
        // No time limit that a busy machine could reach: one who waits for the end waits for ever.
        let reply = Client::tcp(address, "t")
            .with_timeout(Duration::from_secs(3600))
            .get("/");
        assert_eq!(reply.expect("whole").body, serde_json::json!({"a": 1}));
        drop(done);
        server.join().expect("ends");
    }
}

#[test]
fn one_who_does_not_answer_is_waited_for_until_the_wait_is_over() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let client = Client::tcp(address, "t").with_timeout(Duration::from_secs(3600));
    let looks = std::cell::Cell::new(0);
    let is_over = || {
        looks.set(looks.get() + 1);
        looks.get() > 5
    };
    let given_up = client.request_unless("GET", "/", None, &is_over);
    assert!(matches!(given_up, Err(ClientError::Abandoned { .. })));
    drop(listener);
}

#[test]
fn nothing_can_be_slipped_into_a_request() {
    let client = Client::tcp("127.0.0.1:1", "a\r\nX: y");
    assert!(matches!(
        client.get("/"),
        Err(ClientError::Unsendable("the token"))
    ));
    for path in ["", "x", "/a b", "/a\r\n", "/é"] {
        assert!(
            matches!(
                Client::unix("/none").get(path),
                Err(ClientError::Unsendable("the path"))
            ),
            "{path}"
        );
    }
}

#[test]
fn a_missing_daemon_a_silent_one_and_a_stranger_are_told_apart() {
    let missing = Client::unix("/nonexistent/control.sock").get("/");
    assert!(matches!(missing, Err(ClientError::Unreachable { .. })));

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let begun = Instant::now();
    let silent = Client::tcp(address, "t")
        .with_timeout(Duration::from_millis(200))
        .get("/");
    assert!(matches!(silent, Err(ClientError::NoReply { .. })));
    assert!(begun.elapsed() < Duration::from_secs(5));

    for words in [
        &b"SSH-2.0-x\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhtml",
    ] {
        let reply = Client::tcp(canned_server(words), "t").get("/");
        assert!(
            matches!(reply, Err(ClientError::UnexpectedReply { .. })),
            "{reply:?}"
        );
    }
}

#[test]
fn a_room_id_is_one_piece_of_a_path() {
    assert_eq!(encoded(&RoomId::from("!a/b:c.d-e_f")), "%21a%2Fb%3Ac.d-e_f");
}
