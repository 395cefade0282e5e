//! Names in JSON.

/// `amount.currency_code` is `amount.currencyCode` in JSON; what stands in brackets is a client's own.
pub fn camel_case(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    let (mut upper, mut in_brackets) = (false, false);
    for character in path.chars() {
        in_brackets = (in_brackets || character == '[') && character != ']';
        match character {
            '_' if !in_brackets => upper = true,
            _ if upper => {
                text.extend(character.to_uppercase());
                upper = false;
            }
            _ => text.push(character),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_named_as_in_json() {
        assert_eq!(camel_case("amount.currency_code"), "amount.currencyCode");
        assert_eq!(camel_case("metadata[\"a_b\"].next_one"), "metadata[\"a_b\"].nextOne");
    }
}
