//! Keyset pages: a token is the id of the last item, so a page costs the same however deep it is and nothing is skipped or repeated.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::status::Problem;

const SIZE_DEFAULT: u32 = 50;

/// Which page a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// At most so many items.
    pub size: u32,
    /// Only items before this one.
    pub before: Option<Uuid>,
}

impl Page {
    /// Reads `page_size` (validated: 0 to 1000, 0 means 50) and `page_token`.
    pub fn read(size: i32, token: &str) -> Result<Self, Problem> {
        let size = u32::try_from(size).ok().filter(|size| *size > 0).unwrap_or(SIZE_DEFAULT);
        if token.is_empty() {
            return Ok(Self { size, before: None });
        }
        let id = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| Uuid::from_slice(&bytes).ok());
        let id = id.ok_or_else(|| Problem::field("page_token", "must be a nextPageToken of an earlier page, as it was answered"))?;
        Ok(Self { size, before: Some(id) })
    }

    /// One more than the page holds: whether it is there tells if another page follows.
    pub fn limit(&self) -> u64 {
        u64::from(self.size) + 1
    }

    /// Cuts what was read with [`limit`](Self::limit) to the page, and makes the token of the next one.
    pub fn cut<T>(&self, items: &mut Vec<T>, id: impl Fn(&T) -> Uuid) -> String {
        let more = items.len() > self.size as usize;
        items.truncate(self.size as usize);
        items.last().filter(|_| more).map(|last| URL_SAFE_NO_PAD.encode(id(last).as_bytes())).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_to_the_next_page_and_the_last_page_has_none() {
        let page = Page::read(2, "").expect("a first page");
        let mut items: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();
        let token = page.cut(&mut items, |id| *id);
        assert_eq!(items.len(), 2);
        assert_eq!(Page::read(2, &token).expect("our own token").before, Some(Uuid::from_u128(2)));
        assert_eq!(page.cut(&mut items, |id| *id), "");
    }

    #[test]
    fn a_token_that_is_not_ours_names_the_field() {
        let problem = Page::read(0, "x!").expect_err("no base64");
        assert_eq!(problem.fields[0].field, "page_token");
    }
}
