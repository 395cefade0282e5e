//! Keyset pages: a token is the id of the last item, so a page costs the same however deep it is and nothing is skipped or repeated.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::status::Problem;

const SIZE_DEFAULT: u32 = 50;

/// The items of a page have at most so many bytes together. A gRPC client reads 4 MiB in one message, if it is told nothing else.
pub const BYTES_MAX: usize = 1 << 20;

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

    /// Cuts what was read with [`limit`](Self::limit) to the page, by its size and by [`BYTES_MAX`], and makes the token of the next one. `bytes`
    /// is how large an item is in the answer. A page has one item at least, however large, so that whoever pages comes to the end.
    pub fn cut<T>(&self, items: &mut Vec<T>, id: impl Fn(&T) -> Uuid, bytes: impl Fn(&T) -> usize) -> String {
        let mut total = 0_usize;
        let fits = |item: &T| {
            total = total.saturating_add(bytes(item));
            total <= BYTES_MAX
        };
        let by_bytes = items.iter().map(fits).take_while(|fits| *fits).count().max(1);
        let kept = by_bytes.min(self.size as usize);
        let more = items.len() > kept;
        items.truncate(kept);
        items.last().filter(|_| more).map(|last| Self::token(id(last))).unwrap_or_default()
    }

    /// The token of the page that begins after an item.
    pub fn token(last: Uuid) -> String {
        URL_SAFE_NO_PAD.encode(last.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_leads_to_the_next_page_and_the_last_page_has_none() {
        let page = Page::read(2, "").expect("a first page");
        let mut items: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();
        let token = page.cut(&mut items, |id| *id, |_| 16);
        assert_eq!(items.len(), 2);
        assert_eq!(Page::read(2, &token).expect("our own token").before, Some(Uuid::from_u128(2)));
        assert_eq!(page.cut(&mut items, |id| *id, |_| 16), "");
    }

    #[test]
    fn a_page_ends_by_bytes_as_well_and_always_gets_on() {
        for (bytes, kept) in [(BYTES_MAX / 4, 4), (BYTES_MAX / 2 + 1, 1), (2 * BYTES_MAX, 1)] {
            let page = Page::read(50, "").expect("a first page");
            let mut items: Vec<Uuid> = (1..=6).map(Uuid::from_u128).collect();
            let token = page.cut(&mut items, |id| *id, |_| bytes);
            assert_eq!(items.len(), kept, "{bytes}");
            assert_eq!(Page::read(50, &token).expect("our own token").before, items.last().copied());
        }
    }

    #[test]
    fn a_token_that_is_not_ours_names_the_field() {
        let problem = Page::read(0, "x!").expect_err("no base64");
        assert_eq!(problem.fields[0].field, "page_token");
    }
}
