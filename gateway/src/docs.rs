//! `/docs`: the reference of `/openapi.json` in a browser, from files that are in the binary: no network is needed. The page is our own, around Swagger
//! UI: with a search, for a phone's width, and with a token that stays over a reload.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use utoipa_swagger_ui::Config;

static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| Arc::new(Config::from("/openapi.json")));

/// What is our own.
const OWN: [(&str, &str, &str); 4] = [
    ("", "text/html", include_str!("docs/index.html")),
    ("index.html", "text/html", include_str!("docs/index.html")),
    ("lastro.css", "text/css", include_str!("docs/lastro.css")),
    ("lastro.js", "text/javascript", include_str!("docs/lastro.js")),
];

/// Its scripts and styles come from here; the page itself has styles and images inline.
const POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'");

/// The file of the reference at this path.
pub fn page(path: &str) -> Option<Response<Bytes>> {
    if matches!(path, "/" | "/docs") {
        // Its files are named relative to a folder.
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
        response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/docs/"));
        return Some(response);
    }
    let name = path.strip_prefix("/docs/")?;
    let own =
        OWN.iter().find(|(own, ..)| *own == name).map(|(_, kind, text)| (Bytes::from_static(text.as_bytes()), format!("{kind}; charset=utf-8")));
    let (bytes, content_type) = match own {
        Some(own) => own,
        None => {
            let file = utoipa_swagger_ui::serve(name, CONFIG.clone()).ok()??;
            (Bytes::from(file.bytes.into_owned()), file.content_type)
        }
    };
    let mut response = Response::new(bytes);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_str(&content_type).ok()?);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, POLICY);
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_and_its_files_are_in_the_binary() {
        for path in ["/docs/", "/docs/index.html", "/docs/lastro.js", "/docs/lastro.css", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"] {
            let response = page(path).unwrap_or_else(|| panic!("{path}"));
            assert!(!response.body().is_empty(), "{path}");
        }
        // Whatever the page names is there.
        let (_, _, index) = OWN[0];
        let named = index.split('"').filter_map(|text| text.strip_prefix("./"));
        assert!(named.map(|file| page(&format!("/docs/{file}")).unwrap_or_else(|| panic!("{file}"))).count() >= 5);
        assert_eq!(page("/").expect("a way").headers()[header::LOCATION], "/docs/");
        assert!(page("/docs/nothing.js").is_none());
        assert!(page("/docsx").is_none());
    }
}
