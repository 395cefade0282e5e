//! Where in a JSON text a parser stopped: names the field in an error that only knows its line and column.

/// The path of the field at this place: `amount.currencyCode`, `items[2].quantity`. Empty at the top; before the colon of a field it is the
/// path of what the field stands in.
pub fn path_at(json: &[u8], line: usize, column: usize) -> String {
    let start: usize = json.split(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(|line| line.len() + 1).sum();
    let end = (start + column).min(json.len());
    let mut path: Vec<Step> = Vec::new();
    let mut bytes = json[..end].iter().copied().peekable();
    let mut text = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' => path.push(Step::Field(String::new())),
            b'[' => path.push(Step::Index(0)),
            b'}' | b']' => {
                path.pop();
            }
            b',' => match path.last_mut() {
                Some(Step::Index(index)) => *index += 1,
                Some(Step::Field(name)) => name.clear(),
                None => {}
            },
            b':' => {
                if let Some(Step::Field(name)) = path.last_mut() {
                    *name = String::from_utf8_lossy(&text).into_owned();
                }
            }
            b'"' => {
                text.clear();
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'"' => break,
                        b'\\' => text.extend(bytes.next()),
                        byte => text.push(byte),
                    }
                }
            }
            _ => {}
        }
    }
    let mut written = String::new();
    for step in path {
        match step {
            Step::Field(name) if name.is_empty() => {}
            Step::Field(name) if written.is_empty() => written = name,
            Step::Field(name) => written = format!("{written}.{name}"),
            Step::Index(index) => written = format!("{written}[{index}]"),
        }
    }
    written
}

enum Step {
    Field(String),
    Index(usize),
}

/// The line and column in a message of serde_json.
pub fn place(message: &str) -> Option<(usize, usize)> {
    let (_, rest) = message.rsplit_once(" at line ")?;
    let (line, column) = rest.split_once(" column ")?;
    Some((line.parse().ok()?, column.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_field_at_which_a_parser_stopped() {
        let json = br#"{"a": "x,y:z", "amount": {"currencyCode": 5}, "items": [{"n": 1}, {"n": true}]}"#;
        let column = |needle: &str| json.windows(needle.len()).position(|window| window == needle.as_bytes()).expect("present") + needle.len();
        assert_eq!(path_at(json, 1, column("5")), "amount.currencyCode");
        assert_eq!(path_at(json, 1, column("true")), "items[1].n");
        assert_eq!(path_at(json, 1, column("\"x,y:z\"")), "a");
        assert_eq!(path_at(json, 1, column("\"currencyCode\"")), "amount", "a name that was not expected");
        assert_eq!(path_at(json, 1, column("\"items\"")), "");
        assert_eq!(path_at(json, 9, 999), "");
        assert_eq!(path_at(b"{\n \"b\": 7}", 2, 7), "b");
    }

    #[test]
    fn reads_the_place_from_a_message() {
        assert_eq!(place("invalid type: integer `5`, expected a string at line 1 column 43"), Some((1, 43)));
        assert_eq!(place("no place"), None);
    }
}
