//! The words by which orders are found: accents and case do not matter.

use std::collections::BTreeSet;

use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

/// A longer word is known by its begin.
const CHARS_MAX: usize = 64;

/// The words of a text: letters and digits that stand together, each once. Of what is neither nothing is left, so that any text has words, or none.
pub fn words(text: &str) -> BTreeSet<String> {
    let plain: String = text.nfkd().filter(|letter| !is_combining_mark(*letter)).flat_map(char::to_lowercase).collect();
    // What a capital letter was made of may carry a mark of its own.
    let plain: String = plain.nfkd().filter(|letter| !is_combining_mark(*letter)).collect();
    let short = |word: &str| word.chars().take(CHARS_MAX).collect::<String>();
    plain.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty()).map(short).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn accents_and_case_do_not_matter() {
        for (text, expected) in [
            ("Café com AÇÚCAR", vec!["acucar", "cafe", "com"]),
            ("order-4711/b", vec!["4711", "b", "order"]),
            ("ＦＵＬＬ width ﬁne", vec!["fine", "full", "width"]),
            ("İstanbul", vec!["istanbul"]),
            ("' OR 1=1 -- \" * ( ) & | ! : <->", vec!["1", "or"]),
            ("日本 語", vec!["日本", "語"]),
            ("", vec![]),
            ("%_\0\u{1f600}", vec![]),
        ] {
            assert_eq!(words(text).into_iter().collect::<Vec<_>>(), expected, "{text:?}");
        }
        assert_eq!(words(&"x".repeat(500)).into_iter().next().map(|word| word.len()), Some(CHARS_MAX));
    }

    proptest! {
        #[test]
        fn words_are_words_of_themselves(text in ".{0,80}") {
            for word in words(&text) {
                prop_assert_eq!(words(&word), BTreeSet::from([word]));
            }
        }
    }
}
