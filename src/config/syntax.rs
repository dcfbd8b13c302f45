//! Mistakes in YAML, as people call them.

/// What is wrong, by what the parser says of it; `bracket` is the line in which a bracket was opened that is open still.
pub(super) fn explain(said: &str, bracket: Option<usize>) -> String {
    if said.contains("invalid Unicode character escape") {
        "half of a surrogate pair (\\ud800 to \\udfff) stands alone".to_owned()
    } else if said.contains("unknown escape") {
        "after a \\ within double quotes stands something that is no escape; write \\\\, or use single quotes"
                .into()
    } else if said.contains("expected hexadecimal") {
        "an escape \\x, \\u or \\U lacks hexadecimal digits".into()
    } else if said.contains("tab") && !said.contains("table") {
        "a tab stands where YAML wants spaces".into()
    } else if said.contains("quoted scalar") || said.contains("double-quoted") {
        "a quotation mark is not closed, or something stands after the closing one".into()
    } else if let Some(opened) = bracket {
        format!(
            "a bracket [ or {{ that was opened in line {opened} is not closed, or a comma is missing"
        )
    } else if said.contains("unknown anchor") {
        "a * refers to a name that no & gave before".into()
    } else if said.contains("mapping values are not allowed") || said.contains("':'") {
        "a colon stands where none can be: a text with \": \" in it needs quotes, or the line is indented wrongly"
                .into()
    } else if said.contains("indent")
        || said.contains("block mapping")
        || said.contains("block collection")
        || said.contains("simple key")
        || said.contains("expected <document start>")
    {
        "the line is indented in a way that fits nothing above it, or a colon after a key is missing".into()
    } else if said.contains("unexpected character") {
        "a text cannot begin with this character; put it into quotes".into()
    } else if said.contains("recursion") {
        "too many brackets stand in each other".into()
    } else {
        said.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::yaml::{Source, Value};

    fn read(text: &str) -> Result<Value, String> {
        super::super::yaml::read(text, &Source::of(Path::new("x.yaml")))
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_what_it_is_and_nothing_of_what_stands_there() {
        let mut wrong = Vec::new();
        for (text, line, says) in [
            ("a:\n\tb: hunter2\n", 2, "tab"),
            ("a: [1, 2\nb: hunter2\n", 2, "is not closed"),
            ("a: {b: hunter2\n", 2, "is not closed"),
            ("a: \"hunter2\nb: 1\n", 1, "quotation mark"),
            ("a: 'hunter2\n", 1, "quotation mark"),
            ("a: b: hunter2\n", 1, "colon"),
            ("a:\n  b: 1\n c: hunter2\n", 3, "indented"),
            ("a: @hunter2\n", 1, "quotes"),
            ("a: `hunter2`\n", 1, "quotes"),
            ("a: \"hunter2\\q\"\n", 1, "escape"),
            ("a: *hunter2\n", 1, "no & gave"),
            ("a: 1\n---\nhunter2: 2\n", 2, "second document"),
            ("a: !hunter2 x\n", 1, "tag"),
            ("a: 1\nhunter2\nb: 2\n", 3, "colon"),
        ] {
            let error = read(text).expect_err(text);
            let is_right = error.starts_with(&format!("x.yaml:{line}")) && error.contains(says);
            if !is_right || error.contains("hunter2") {
                wrong.push(format!("{text:?}: {error}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
