//! What the shop sells, and who buys there.

/// Of everybody but the administrator.
pub const PASSWORD: &str = "correct horse";

/// Those who sell, by name and address: a roastery and a pottery.
pub const MERCHANTS: [(&str, &str); 2] = [("Torrefação Aurora", "aurora@example.com"), ("Ateliê Barro", "barro@example.com")];

/// Those who buy, by their first names.
pub const BUYERS: [&str; 12] = ["Ana", "Bruno", "Carla", "Diego", "Eva", "Fábio", "Gabriela", "Hugo", "Inês", "João", "Karina", "Rui"];

/// Where the pieces are.
pub const STORES: [&str; 2] = ["centro", "pinheiros"];

/// Something that is sold.
pub struct Product {
    pub name: &'static str,
    /// Who sells it, by the place in [`MERCHANTS`].
    pub merchant: usize,
    /// In Brazilian reais.
    pub price: &'static str,
    /// How often it is bought, beside the others.
    pub weight: u32,
    /// Pieces that each store gets every Monday.
    pub delivered: u32,
}

/// All that is sold. Of the last one there are too few.
pub const PRODUCTS: [Product; 8] = [
    Product { name: "Café Mogiana 250 g", merchant: 0, price: "32.00", weight: 10, delivered: 40 },
    Product { name: "Café Sul de Minas 500 g", merchant: 0, price: "54.50", weight: 7, delivered: 30 },
    Product { name: "Chá de hortelã 50 g", merchant: 0, price: "18.90", weight: 4, delivered: 20 },
    Product { name: "Açúcar mascavo 1 kg", merchant: 0, price: "12.40", weight: 5, delivered: 20 },
    Product { name: "Filtro de papel 102", merchant: 0, price: "7.90", weight: 6, delivered: 30 },
    Product { name: "Caneca de cerâmica azul", merchant: 1, price: "45.00", weight: 4, delivered: 15 },
    Product { name: "Bule esmaltado 1 l", merchant: 1, price: "139.00", weight: 2, delivered: 8 },
    Product { name: "Moedor manual", merchant: 1, price: "289.00", weight: 1, delivered: 1 },
];
