use proptest::prelude::*;

use super::*;

/// Reads bytes as the server does: find the end, then read the head.
fn read(bytes: &[u8]) -> Result<Option<(Head, usize)>, ErrorResponse> {
    let Some(end) = Scan::default().end(bytes)? else {
        return Ok(None);
    };
    Ok(Some((Head::parse(&bytes[..end])?, end)))
}

fn status(bytes: &[u8]) -> u16 {
    match read(bytes) {
        Ok(Some(_)) => 200,
        Ok(None) => 0,
        Err(error_response) => error_response.status,
    }
}

#[test]
fn an_ordinary_request_is_read() {
    let bytes =
        b"POST /_synapse/admin/v1/purge_history/!a:b?x=%20 HTTP/1.1\r\nHost: localhost:8009\r\n\
        authorization:  Bearer abc \t\r\nContent-Length: 2\r\nUser-Agent: \xc3\xa9\r\nX:\r\n\r\n{}";
    let (head, end) = read(bytes).expect("legal").expect("whole");
    assert_eq!(end, bytes.len() - 2);
    assert_eq!(head.method, "POST");
    assert_eq!(head.target, "/_synapse/admin/v1/purge_history/!a:b?x=%20");
    assert_eq!(head.authorization, ["Bearer abc"]);
    assert_eq!(head.body, BodyLength::Known(2));
    assert!(!head.close && !head.expects_continue);
}

#[test]
fn what_has_two_readings_is_refused() {
    let table: &[(u16, &[u8])] = &[
        // Framing.
        (200, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 007\r\n\r\n"),
        (200, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999999999999\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\ncontent-length: 3\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2 2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2_0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2.0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \xd9\xa2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length\t: 2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\n Content-Length: 2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\n Host: a\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n folded\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n\tfolded\r\n\r\n"),
        (200, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (200, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:CHUNKED \r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: identity\r\n\r\n"),
        (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n"),
        // Lines.
        (400, b"GET / HTTP/1.1\nHost: a\n\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\rX: y\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: \x0b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\n: no name\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nn\xc3\xa4me: x\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\n(name): x\r\n\r\n"),
        (200, b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (0, b"GET / HTTP/1.1\r\nHost: a\r\n"),
        (0, b"GET / HTTP/1.1\r\nHost: a\r\n\r"),
        (0, b""),
        (0, b"\r"),
        // The request line.
        (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
        (400, b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET /\tHTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET /\r\nHost: a\r\n\r\n"),
        (400, b"GET / HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"AVERYLONGMETHODNAMEINDEED / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (200, b"PURGE / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        (505, b"PRI * HTTP/2.0\r\n\r\n"),
        (505, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
        (505, b"GET / HTTP/0.9\r\nHost: a\r\n\r\n"),
        (400, b"GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
        (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET room HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
        (200, b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
        (501, b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n"),
        (200, b"GET /?filter={\"types\":[\"a\"]} HTTP/1.1\r\nHost: a\r\n\r\n"),
        (200, b"GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET http://u@a/x HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET ftp://a/x HTTP/1.1\r\nHost: a\r\n\r\n"),
        // Host.
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (200, b"GET / HTTP/1.0\r\n\r\n"),
        (200, b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        (200, b"GET / HTTP/1.1\r\nHost: [::1]:8009\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
        (400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
        // The rest.
        (417, b"POST / HTTP/1.1\r\nHost: a\r\nExpect: the-unexpected\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    ];
    for (expected, bytes) in table {
        assert_eq!(status(bytes), *expected, "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_whole_address_as_target_becomes_a_path() {
    for (target, path) in [
        ("http://a:1/x?y", "/x?y"),
        ("HTTPS://a", "/"),
        ("http://a?y", "/?y"),
        ("//a/x", "//a/x"),
        ("/http://a/x", "/http://a/x"),
    ] {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let (head, _) = read(bytes.as_bytes()).expect("legal").expect("whole");
        assert_eq!(head.target, path);
    }
}

#[test]
fn a_connection_ends_when_the_client_or_its_version_says_so() {
    for (bytes, close) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", false),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
            false,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: TE , Close\r\n\r\n",
            true,
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: x\r\nConnection: close\r\n\r\n",
            true,
        ),
        ("GET / HTTP/1.0\r\n\r\n", true),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
    ] {
        let (head, _) = read(bytes.as_bytes()).expect("legal").expect("whole");
        assert_eq!(head.close, close, "{bytes}");
    }
}

#[test]
fn only_a_body_can_be_waited_for() {
    for (bytes, expects) in [
        (
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n",
            true,
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
            false,
        ),
        (
            "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
            false,
        ),
    ] {
        let (head, _) = read(bytes.as_bytes()).expect("legal").expect("whole");
        assert_eq!(head.expects_continue, expects, "{bytes}");
    }
}

#[test]
fn a_head_of_16_kib_is_read_and_a_longer_one_is_not() {
    let head = |size: usize| {
        let mut bytes = b"GET / HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
        bytes.resize(size - 4, b'x');
        bytes.extend_from_slice(b"\r\n\r\n");
        bytes
    };
    assert_eq!(status(&head(MAX_HEAD)), 200);
    assert_eq!(status(&head(MAX_HEAD + 1)), 431);
    assert_eq!(status(&head(MAX_HEAD * 3)), 431);
    let mut with_body = head(MAX_HEAD);
    with_body.extend_from_slice(b"body");
    assert_eq!(status(&with_body), 200);
    assert_eq!(
        status(format!("GET /{}", "x".repeat(MAX_HEAD)).as_bytes()),
        414
    );
    let many = |count: usize| format!("GET / HTTP/1.0\r\n{}\r\n", "X: y\r\n".repeat(count));
    assert_eq!(status(many(MAX_HEADERS).as_bytes()), 200);
    assert_eq!(status(many(MAX_HEADERS + 1).as_bytes()), 431);
}

/// Pieces that arbitrary bytes would seldom make.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let known: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n",
        b"POST /x HTTP/1.1\r\n",
        b"GET / HTTP/1.0\r\n",
        b"Host: a\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"Authorization: Bearer x\r\n",
        b" ",
        b"\t",
        b":",
        b"\r",
        b"\n",
        b"\0",
        b"\r\n",
        b"\r\n\r\n",
    ];
    prop_oneof![
        4 => proptest::sample::select(known).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = read(&bytes);
        let _ = Head::parse(&bytes);
    }

    /// One head is one request: no line of a head that is read is another request's beginning, and the bytes
    /// after its end do not change what it says.
    #[test]
    fn one_head_never_holds_two_requests(pieces in proptest::collection::vec(fragment(), 0..12), at in any::<usize>()) {
        let bytes = pieces.concat();
        let whole = read(&bytes);
        if let Ok(Some((head, end))) = &whole {
            let body = bytes.get(2..*end).and_then(|rest| rest.windows(4).position(|w| w == b"\r\n\r\n"));
            prop_assert_eq!(body.map(|at| at + 6), Some(*end), "the head ends at its first empty line");
            prop_assert!(head.body.known() <= MAX_BODY);
            prop_assert!(head.target.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(head.method.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(head.authorization.iter().all(|value| value.bytes().all(|b| b == b'\t' || (32..127).contains(&b))));
            let alone = read(&bytes[..*end]);
            prop_assert_eq!(alone, Ok(Some((head.clone(), *end))));
        }
        // In pieces it says the same as at once.
        let mut scan = Scan::default();
        let cut = at % (bytes.len() + 1);
        let in_pieces = scan.end(&bytes[..cut]).and_then(|end| match end {
            Some(end) => Ok(Some(end)),
            None => scan.end(&bytes),
        });
        prop_assert_eq!(in_pieces, Scan::default().end(&bytes));
    }
}
