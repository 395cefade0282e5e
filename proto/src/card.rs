//! Cards, of which Lastro takes tokens alone.

/// Whether this is the number of a card, which nobody may send: 13 to 19 digits, however they are grouped, whose last one is the check digit of the others (ISO/IEC 7812-1, annex B).
pub fn is_card_number(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter(|letter| !matches!(letter, ' ' | '-')).map_while(|letter| letter.to_digit(10)).collect();
    let is_all = digits.len() == text.chars().filter(|letter| !matches!(letter, ' ' | '-')).count();
    let doubled = |(index, digit): (usize, &u32)| {
        if index % 2 == 0 {
            *digit
        } else if *digit > 4 {
            2 * digit - 9
        } else {
            2 * digit
        }
    };
    is_all && (13..=19).contains(&digits.len()) && digits.iter().rev().enumerate().map(doubled).sum::<u32>().is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::is_card_number;

    #[test]
    fn card_numbers_are_told_from_tokens() {
        for number in ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "340000000000009"] {
            assert!(is_card_number(number), "{number}");
        }
        for token in ["tok_approve", "4111111111111112", "411111111111", "tok_4111111111111111", "", "0190b3a2-7c1e-7d5e-9a3b-2f6c1d0e4b5a"] {
            assert!(!is_card_number(token), "{token}");
        }
    }
}
