use super::*;

fn ours() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))
        .expect("mode");
    directory
}

#[test]
fn a_socket_file_is_for_its_owner_alone_and_goes_with_its_listener() {
    let directory = ours();
    let path = directory.path().join("control.sock");
    let listener = open_unix(&path).expect("open");
    let mode = std::fs::metadata(&path)
        .expect("it exists")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(UnixStream::connect(&path).is_ok());
    assert_eq!(
        std::fs::read_dir(directory.path())
            .expect("readable")
            .count(),
        1,
        "nothing else is left there"
    );
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_dead_process_leaves_its_place_and_a_living_one_keeps_it() {
    let directory = ours();
    let path = directory.path().join("control.sock");
    drop(UnixListener::bind(&path).expect("a socket that nobody listens on"));
    assert!(path.exists());
    let living = open_unix(&path).expect("the dead one is replaced");
    let error = open_unix(&path).expect_err("the living one is not");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(living.accept().is_ok(), "the question was heard");
    assert!(UnixStream::connect(&path).is_ok());
}

#[test]
fn a_successors_socket_file_is_left_alone() {
    let directory = ours();
    let path = directory.path().join("control.sock");
    let first = open_unix(&path).expect("open");
    std::fs::remove_file(&path).expect("removed by somebody");
    let second = open_unix(&path).expect("open again");
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[test]
fn a_file_that_is_no_socket_is_not_overwritten() {
    let directory = ours();
    let path = directory.path().join("control.sock");
    std::fs::write(&path, "precious").expect("written");
    assert_eq!(
        open_unix(&path).expect_err("refused").kind(),
        ErrorKind::AlreadyExists
    );
    assert_eq!(std::fs::read(&path).expect("still there"), b"precious");
    std::fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink("/dev/null", &path).expect("linked");
    assert_eq!(
        open_unix(&path).expect_err("refused").kind(),
        ErrorKind::AlreadyExists
    );
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let directory = ours();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777))
        .expect("mode");
    let error = open_unix(&directory.path().join("control.sock")).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert_eq!(
        open_unix(&directory.path().join("no/control.sock"))
            .expect_err("refused")
            .kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn of_many_that_start_at_once_one_gets_the_socket() {
    let directory = ours();
    let path = directory.path().join("control.sock");
    drop(UnixListener::bind(&path).expect("a dead one to fight over"));
    let start = std::sync::Barrier::new(8);
    let opened: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    open_unix(&path).ok()
                })
            })
            .collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    assert_eq!(opened.len(), 1);
}

#[test]
fn a_port_in_use_is_an_error_and_a_free_one_is_told() {
    let listener = open_tcp(([127, 0, 0, 1], 0).into()).expect("a free port");
    let address = listener.tcp_address().expect("an address");
    assert_ne!(address.port(), 0);
    assert_eq!(
        open_tcp(address).expect_err("in use").kind(),
        ErrorKind::AddrInUse
    );
}
