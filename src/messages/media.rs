//! The media that an event names.

use super::json::Object;

/// A file in a media repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaId {
    /// The server that has it.
    pub server: String,
    /// Its name there.
    pub id: String,
}

/// The files that an event's content names: its own, and its thumbnail. What is encrypted names none that can be read.
pub fn media_of(event: &str) -> Vec<MediaId> {
    let content = Object::read(event).and_then(|event| Object::read(event.get("content")?));
    let Some(content) = content else {
        return Vec::new();
    };
    let info = content.get("info").and_then(Object::read);
    let thumbnail = info.and_then(|info| info.text("thumbnail_url"));
    let named = [content.text("url"), thumbnail];
    named
        .into_iter()
        .flatten()
        .filter_map(|url| media(&url))
        .collect()
}

/// `mxc://server/id`, and whatever comes after that.
fn media(url: &str) -> Option<MediaId> {
    let (server, rest) = url.strip_prefix("mxc://")?.split_once('/')?;
    let id = rest.split(['/', '#', '?']).next()?;
    (!server.is_empty() && !id.is_empty()).then(|| MediaId {
        server: server.to_owned(),
        id: id.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_event_names_is_found_whatever_else_it_says() {
        let of = |event: &str| -> Vec<String> {
            let media = media_of(event);
            media
                .iter()
                .map(|m| format!("{} {}", m.server, m.id))
                .collect()
        };
        let both =
            r#"{"content": {"url": "mxc://a.b/1?x", "info": {"thumbnail_url": "mxc://c:8/2#y"}}}"#;
        assert_eq!(of(both), ["a.b 1", "c:8 2"]);
        for none in [
            "",
            "[]",
            "{}",
            r#"{"content": 5}"#,
            r#"{"content": {"url": 5, "info": "mxc://a/b"}}"#,
            r#"{"content": {"url": "https://a/b"}}"#,
            r#"{"content": {"url": "mxc:///b"}}"#,
            r#"{"content": {"url": "mxc://a/"}}"#,
            r#"{"content": {"url": "mxc://a"}}"#,
        ] {
            assert!(of(none).is_empty(), "{none}");
        }
        let deep = format!(
            r#"{{"content": {{"x": {}, "url": "mxc://a/b"}}}}"#,
            "[".repeat(5000) + &"]".repeat(5000)
        );
        assert_eq!(of(&deep), ["a b"]);
    }
}
