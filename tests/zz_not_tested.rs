//! The last suite by its name: it tells how many tests before it tested nothing, because there was no PostgreSQL server to
//! start. It has no harness, so that what it says is seen.

#[cfg(feature = "postgres")]
#[allow(dead_code)]
#[path = "support/cluster.rs"]
mod cluster;

fn main() {
    #[cfg(feature = "postgres")]
    {
        let file = cluster::not_tested();
        let noted = std::fs::read_to_string(&file).unwrap_or_default();
        let _ = std::fs::remove_file(&file);
        let tests: std::collections::BTreeSet<&str> = noted.lines().collect();
        match tests.len() {
            0 => {}
            count => println!(
                "\nNOT TESTED: {count} of the tests above tested nothing, because there is no PostgreSQL server to start: \
                 install postgresql\n"
            ),
        }
    }
}
