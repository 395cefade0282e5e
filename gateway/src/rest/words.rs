//! What is wrong with a request that the parser of JSON could not read, in the contract's words: the parser speaks of types and variants of our code.

use lastro_mesh::status::Problem;
use lastro_proto::methods::Method;
use lastro_proto::reasons::MALFORMED_JSON;
use tonic_types::FieldViolation;

use super::json_path;

/// Longer paths are cut where an error repeats them.
const PATH_SHOWN_MAX: usize = 200;

/// Says which field, if the error or the place in it tells, and what it must be.
pub fn unreadable(method: &Method, error: &serde_json::Error, body: &[u8]) -> Problem {
    let message = error.to_string();
    if error.is_data() {
        return malformed(method, &message, body);
    }
    let why = message.rsplit_once(" at line ").map_or(message.as_str(), |(why, _)| why).replace("EOF while", "it ends while");
    let at = format!("at line {}, column {}", error.line(), error.column());
    Problem::new(&MALFORMED_JSON, format!("the request body is not JSON: {why}, {at}"))
}

fn malformed(method: &Method, message: &str, body: &[u8]) -> Problem {
    let what = message.rsplit_once(" at line ").map_or(message, |(what, _)| what);
    let at = json_path::place(message).map(|(line, column)| json_path::path_at(body, line, column)).unwrap_or_default();
    // Names are the client's own; an answer repeats so much of them.
    let cut = |text: &str| text.chars().take(PATH_SHOWN_MAX).collect::<String>();
    let within = |name: &str| if at.is_empty() { cut(name) } else { cut(&format!("{at}.{name}")) };
    let (field, description) = if let Some(name) = named(what, "unknown field `") {
        (within(name), "is not known here; remove it".to_owned())
    } else if let Some(name) = named(what, "duplicate field `") {
        (within(name), "is given twice; send it once".to_owned())
    } else {
        // Which form it has in JSON goes before what it means.
        let of_form = ["expected a string", "expected a sequence", "expected a map", "expected struct"].iter().any(|form| what.contains(form));
        let of_the_contract = if of_form { None } else { lastro_proto::must_be(method.input, &snake_case(&at)) };
        let description = of_the_contract.map_or_else(|| cut(&must_be(what)), str::to_owned);
        (cut(&at), description)
    };
    // A list at the top has no fields, only items.
    if field.is_empty() || field.starts_with('[') {
        let description = if field.is_empty() { description } else { "must be an object".to_owned() };
        return Problem::new(&MALFORMED_JSON, format!("the request body {description}"));
    }
    let detail = format!("{field}: {description}");
    Problem { fields: vec![FieldViolation::new(field, description)], ..Problem::new(&MALFORMED_JSON, detail) }
}

fn named<'a>(what: &'a str, before: &str) -> Option<&'a str> {
    what.strip_prefix(before)?.split_once('`').map(|(name, _)| name)
}

/// `invalid type: integer `5`, expected a string` is `must be a string`.
fn must_be(what: &str) -> String {
    if what.contains("untagged enum") {
        // What numbers are read by.
        return "must be a whole number".to_owned();
    }
    let Some((_, expected)) = what.split_once("expected ") else { return format!("cannot be read: {what}") };
    let expected = match expected.trim_start_matches("expected ") {
        "a sequence" => "a list",
        "a map" => "an object",
        "a boolean" => "true or false",
        name if name.starts_with("struct ") => "an object",
        number if ["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "usize"].contains(&number) => "a whole number",
        other => other,
    };
    format!("must be {expected}")
}

/// `amount.currencyCode` is `amount.currency_code` in the proto.
fn snake_case(path: &str) -> String {
    let mut text = String::with_capacity(path.len() + 4);
    for character in path.chars() {
        if character.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(character.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use lastro_proto::methods::METHODS;

    use super::*;

    fn told(method: &str, message: &str, body: &str) -> (String, String) {
        let method = METHODS.iter().find(|one| one.name == method).expect("a method");
        let problem = malformed(method, message, body.as_bytes());
        assert_eq!(problem.reason, &MALFORMED_JSON);
        (problem.fields.first().map(|field| field.field.clone()).unwrap_or_default(), problem.detail)
    }

    #[test]
    fn what_cannot_be_read_is_named_and_told_in_the_words_of_the_contract() {
        let pair = |field: &str, detail: &str| (field.to_owned(), if field.is_empty() { detail.to_owned() } else { format!("{field}: {detail}") });
        let transfer = |message: &str, body: &str| told("CreateTransaction", message, body);
        assert_eq!(
            transfer("invalid type: integer `5`, expected struct Money at line 1 column 12", r#"{"amount": 5}"#),
            pair("amount", "must be an object")
        );
        assert_eq!(
            transfer("unknown variant `X`, expected one of `TYPE_UNSPECIFIED`, `DEPOSIT` at line 1 column 11", r#"{"type":"X"}"#),
            pair("type", "must be DEPOSIT, WITHDRAWAL or TRANSFER")
        );
        assert_eq!(
            told("UpdateUser", "invalid value: integer `7`, expected one of: [\"ROLE_UNSPECIFIED\"] at line 1 column 11", r#"{"roles":[7]}"#),
            pair("roles[0]", "must be USER, ADMIN or PROVIDER")
        );
        assert_eq!(
            transfer("missing 's' suffix at line 1 column 11", r#"{"wait":"5"}"#),
            pair("wait", "must be a duration in seconds, such as \"5s\" or \"0.5s\"")
        );
        assert_eq!(
            transfer("invalid type: integer `5`, expected a string at line 1 column 22", r#"{"amount": {"amount":5}}"#),
            pair("amount.amount", "must be a string")
        );
        assert_eq!(
            told("UpdateUser", "invalid type: string \"USER\", expected a sequence at line 1 column 15", r#"{"roles":"USER"}"#),
            pair("roles", "must be a list")
        );
        // A name of the client's own as long as a body may be does not fill the answer.
        let name = "[]".repeat(100_000);
        let body = format!(r#"{{"metadata":{{"{name}":5}}}}"#);
        let (field, detail) = transfer(&format!("invalid type: integer `5`, expected a string at line 1 column {}", body.len() - 2), &body);
        assert!(field.starts_with("metadata.[]") && detail.len() < 500, "{} {}", field.len(), detail.len());
        let (_, detail) = transfer(&format!("unknown variant `{name}`, expected nothing at line 1 column {}", body.len() - 2), &body);
        assert!(detail.len() < 500, "{}", detail.len());
        assert_eq!(transfer("unknown field `foo`, expected one of `a`", ""), pair("foo", "is not known here; remove it"));
        assert_eq!(transfer("duplicate field `type`", "{}"), pair("type", "is given twice; send it once"));
        assert_eq!(
            transfer("data did not match any variant of untagged enum NumberDeserialize at line 1 column 13", r#"{"number":"x"}"#),
            pair("number", "must be a whole number")
        );
        assert_eq!(transfer("invalid type: integer `5`, expected struct X at line 1 column 1", "5"), pair("", "the request body must be an object"));
        let not_json = serde_json::from_str::<serde_json::Value>("{").expect_err("half an object");
        let method = METHODS.iter().find(|one| one.name == "CreateTransaction").expect("a method");
        let problem = unreadable(method, &not_json, b"{");
        assert_eq!(
            (problem.fields.len(), problem.detail.as_str()),
            (0, "the request body is not JSON: it ends while parsing an object, at line 1, column 1")
        );
    }
}
