//! The query of a request: read by the contract of its method, each parameter once and under one of its two names.

use std::borrow::Cow;

use lastro_mesh::status::Problem;
use lastro_proto::json;
use lastro_proto::methods::{Form, Method, Parameter};
use serde_json::{Map, Value};

/// Longer names are cut where an error repeats them.
const NAME_SHOWN_MAX: usize = 100;

/// The fields that stand in the query, as in JSON.
pub fn read(method: &Method, query: &str) -> Result<Map<String, Value>, Problem> {
    let mut fields = Map::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name).unwrap_or(Cow::Borrowed(name));
        let parameter = method.query.iter().find(|one| one.name == name || one.proto_name == name);
        // The first mistake ends it, so that a long query costs no more than a short one.
        let parameter = parameter.ok_or_else(|| not_taken(method, &name))?;
        if fields.contains_key(parameter.name) {
            return Err(Problem::field(parameter.name, "is given twice; send it once"));
        }
        fields.insert(parameter.name.to_owned(), read_value(parameter, value)?);
    }
    Ok(fields)
}

fn not_taken(method: &Method, name: &str) -> Problem {
    // As the field is named in JSON, whichever of its names was given.
    let shown = json::camel_case(&name.chars().take(NAME_SHOWN_MAX).collect::<String>());
    let why = if method.path_fields.contains(&shown.as_str()) {
        "stands in the path; remove it from the query"
    } else if method.takes_body {
        "is no query parameter of this method, which takes none; send the fields of the request in its body"
    } else {
        "is no query parameter of this method; remove it"
    };
    Problem::field(shown, why)
}

fn read_value(parameter: &Parameter, value: &str) -> Result<Value, Problem> {
    let value = decode(value).ok_or_else(|| Problem::field(parameter.name, "must be percent-encoded UTF-8"))?;
    match parameter.form {
        Form::Number => value.parse::<i32>().map(Value::from).map_err(|_| Problem::field(parameter.name, "must be a whole number")),
        Form::Bool => value.parse::<bool>().map(Value::from).map_err(|_| Problem::field(parameter.name, "must be true or false")),
        Form::Text => Ok(value.into_owned().into()),
    }
}

/// `%XX` stands for a byte and `+` for a space. None where a `%` begins no escape, or where the bytes are not UTF-8.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(rest.next())?, digit(rest.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use lastro_proto::methods::METHODS;

    use super::*;

    fn method(name: &str) -> &'static Method {
        METHODS.iter().find(|method| method.name == name).expect("a method")
    }

    fn refused(name: &str, query: &str) -> String {
        read(method(name), query).expect_err(query).fields[0].field.clone()
    }

    #[test]
    fn a_parameter_is_read_once_under_either_of_its_names() {
        for (query, read_as) in [
            ("", "{}"),
            ("&&", "{}"),
            ("pageSize=2&ownerId=x", r#"{"pageSize":2,"ownerId":"x"}"#),
            ("page_size=2", r#"{"pageSize":2}"#),
            ("page%53ize=%32", r#"{"pageSize":2}"#),
            ("pageToken=a%2Bb+c", r#"{"pageToken":"a+b c"}"#),
        ] {
            let expected: Map<String, Value> = serde_json::from_str(read_as).expect("JSON");
            assert_eq!(read(method("ListAccounts"), query).expect(query), expected);
        }
        for query in ["pageSize=1&pageSize=2", "pageSize=1&pageSize=1", "pageSize=1&page_size=2", "pageSize=1&page%5fsize=2", "pageSize=%zz"] {
            assert_eq!(refused("ListAccounts", query), "pageSize", "{query}");
        }
        for query in ["pageSize=", "pageSize=x", "pageSize=1.0", "pageSize=99999999999", "pageSize=%ff"] {
            assert_eq!(refused("ListAccounts", query), "pageSize", "{query}");
        }
        assert_eq!(refused("ListAccounts", "foo=1"), "foo");
    }

    #[test]
    fn what_has_its_place_elsewhere_is_refused() {
        assert_eq!(refused("GetAccount", "id=x"), "id");
        for query in ["amount.amount=7.77", "externalId=x", "validateOnly=true", "$alt=json", "=x"] {
            read(method("CreateTransaction"), query).expect_err(query);
        }
        assert_eq!(refused("Login", "email=a&password=b"), "email");
    }
}
