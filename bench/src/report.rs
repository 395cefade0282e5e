//! Printing figures.

/// The middle one; None of nothing.
pub fn median(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// One ratio, if both sides were measured.
pub fn ratio(name: &str, ours: Option<f64>, base: Option<f64>) {
    if let (Some(ours), Some(base)) = (ours, base) {
        println!("RATIO {name}: {:.2} ({ours:.0}/s : {base:.0}/s)", ours / base);
    }
}
