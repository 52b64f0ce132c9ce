//! Takes Rust text apart into code and comments, as far as the rules need it.

/// Both as long as the text, with all else as spaces, so that places are the same. String literals are in neither.
pub(super) struct Parts {
    pub(super) code: String,
    pub(super) comments: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// Splits a file's text.
pub(super) fn split(text: &str) -> Parts {
    let mut kinds = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    while kinds.len() < bytes.len() {
        let at = kinds.len();
        let (kind, length) = token(bytes, at);
        kinds.resize((at + length.max(1)).min(bytes.len()), kind);
    }
    let keep = |wanted: Kind| {
        let byte = |(byte, kind): (&u8, &Kind)| if *kind == wanted || *byte == b'\n' { *byte } else { b' ' };
        String::from_utf8_lossy(&bytes.iter().zip(&kinds).map(byte).collect::<Vec<_>>()).into_owned()
    };
    Parts { code: keep(Kind::Code), comments: keep(Kind::Comment) }
}

/// Kind and length of what begins at `at`.
fn token(bytes: &[u8], at: usize) -> (Kind, usize) {
    let rest = &bytes[at..];
    let in_word = at > 0 && is_word(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => (Kind::Comment, until(rest, b"\n", 2)),
        [b'/', b'*', ..] => (Kind::Comment, block(rest)),
        [b'"', ..] => (Kind::Literal, quoted(rest, b'"')),
        [b'r' | b'b' | b'c', ..] if !in_word => {
            raw(rest).map_or((Kind::Code, 1), |length| (Kind::Literal, length))
        }
        [b'\'', b'\\', ..] => (Kind::Literal, quoted(rest, b'\'')),
        [b'\'', first, ..] => {
            let width = std::str::from_utf8(&rest[1..rest.len().min(5)]).map_or_else(
                |error| error.valid_up_to().clamp(1, 4),
                |text| text.chars().next().map_or(1, char::len_utf8),
            );
            let width = if first.is_ascii() { 1 } else { width };
            // Otherwise a lifetime.
            if rest.get(1 + width) == Some(&b'\'') { (Kind::Literal, width + 2) } else { (Kind::Code, 1) }
        }
        _ => (Kind::Code, 1),
    }
}

pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The length up to and without `end`, looked for from `from`.
fn until(rest: &[u8], end: &[u8], from: usize) -> usize {
    rest[from..].windows(end.len()).position(|window| window == end).map_or(rest.len(), |place| from + place)
}

/// The length of a block comment; they nest.
fn block(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a literal that `end` ends and a backslash escapes.
fn quoted(rest: &[u8], end: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != end {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// The length of `r"…"`, `r#"…"#`, `br"…"` and so on, or of `b"…"`; none for anything else.
fn raw(rest: &[u8]) -> Option<usize> {
    let prefix = rest.iter().take_while(|byte| matches!(byte, b'r' | b'b' | b'c')).take(2).count();
    let hashes = rest[prefix..].iter().take_while(|byte| **byte == b'#').count();
    let open = prefix + hashes;
    (rest.get(open) == Some(&b'"')).then_some(())?;
    if !rest[..prefix].contains(&b'r') {
        return (hashes == 0).then(|| prefix + quoted(&rest[prefix..], b'"'));
    }
    let end = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    Some(until(rest, &end, open + 1) + end.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_chars_and_comments_are_not_code_and_lifetimes_are() {
        let text = "a /* b /* c */ d */ e \"f\\\" g\" h r#\"i \" j\"# 'k' '\\'' <'l> 'ä' m // n\no b\"p\" br\"q\\\" r";
        let parts = split(text);
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(&parts.code), "a e h <'l> m o r");
        assert_eq!(words(&parts.comments), "/* b /* c */ d */ // n");
        assert_eq!(parts.code.len(), text.len());
    }

    #[test]
    fn a_literal_without_an_end_reaches_to_the_end() {
        for text in ["\"a", "r#\"a\"", "/* a", "'\\", "'", "b\"\\"] {
            split(text);
        }
    }
}
