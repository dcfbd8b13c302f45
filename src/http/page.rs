//! `GET /`: the page for people. One file without outside resources; it asks the same endpoints as every other client,
//! with the token that its user types, and shows nothing without one.

use rand::Rng;
use rand::distr::Alphanumeric;

use super::handlers::Response;
use super::json::ApiError;
use super::{Api, Context};

/// The whole page; `NONCE` stands where the answer's own number goes.
const PAGE: &str = include_str!("page.html");

/// Letters of the number by which a browser knows the page's own script and style.
const NONCE_LETTERS: usize = 24;

/// The page. It tells nothing of the server, so it needs no token.
pub fn get(_: &Api, _: &Context) -> Result<Response, ApiError> {
    let letters = rand::rng().sample_iter(Alphanumeric).take(NONCE_LETTERS);
    let nonce: String = letters.map(char::from).collect();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    );
    Ok(Response {
        status: 200,
        headers: vec![
            ("Content-Type", "text/html; charset=utf-8".to_owned()),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff".to_owned()),
            ("Referrer-Policy", "no-referrer".to_owned()),
            ("Cache-Control", "no-store".to_owned()),
        ],
        body: PAGE.replace("NONCE", &nonce).into_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::PAGE;

    #[test]
    fn the_page_fetches_nothing_from_elsewhere_and_reads_nothing_as_markup() {
        for forbidden in [
            "http://",
            "https://",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
        ] {
            let found = PAGE
                .replace("http://www.w3.org/2000/svg", "")
                .contains(forbidden);
            assert!(!found, "{forbidden}");
        }
        assert_eq!(PAGE.matches("nonce=\"NONCE\"").count(), 2);
        assert_eq!(PAGE.matches("NONCE").count(), 2);
        assert!(!PAGE.contains(" style=\""), "the content policy forbids it");
    }
}
