//! ISO 4217 currencies and how many fraction digits each has.
//!
//! Source: ISO 4217:2015, list one as amended to 180 (2025). Funds, metals and testing codes are left out: nobody holds an account in them.

use std::fmt;

/// An active ISO 4217 currency.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency {
    code: [u8; 3],
    exponent: u8,
}

/// Codes by exponent: the number of digits after the point.
const BY_EXPONENT: [(u8, &str); 4] = [
    (0, "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"),
    (
        2,
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP CRC CUP CVE \
         CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR \
         KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB \
         PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY \
         TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG",
    ),
    (3, "BHD IQD JOD KWD LYD OMR TND"),
    (4, "CLF UYW"),
];

impl Currency {
    /// The currency with this alphabetic code, upper case. None for a code that ISO 4217 does not list.
    pub fn from_code(code: &str) -> Option<Self> {
        let bytes: [u8; 3] = code.as_bytes().try_into().ok()?;
        BY_EXPONENT
            .iter()
            .find(|(_, codes)| codes.split(' ').any(|listed| listed == code))
            .map(|(exponent, _)| Self { code: bytes, exponent: *exponent })
    }

    /// Every currency, by code.
    pub fn all() -> impl Iterator<Item = Self> {
        BY_EXPONENT.iter().flat_map(|(_, codes)| codes.split_whitespace().filter_map(Self::from_code))
    }

    /// The alphabetic code.
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.code).unwrap_or_default()
    }

    /// How many digits an amount has after the point: 0 to 4.
    pub const fn exponent(&self) -> u8 {
        self.exponent
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.code())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_those_of_iso_4217() {
        for (code, exponent) in [("BRL", 2), ("USD", 2), ("JPY", 0), ("KWD", 3), ("CLF", 4), ("MRU", 2)] {
            assert_eq!(Currency::from_code(code).map(|currency| currency.exponent()), Some(exponent), "{code}");
        }
    }

    #[test]
    fn unknown_codes_are_no_currency() {
        for code in ["", "BR", "BRLX", "brl", "XXX", "ABC", "B L", "AED AFN"] {
            assert_eq!(Currency::from_code(code), None, "{code:?}");
        }
    }

    #[test]
    fn no_code_is_listed_twice() {
        let mut codes: Vec<_> = Currency::all().collect();
        let listed = codes.len();
        codes.sort();
        codes.dedup_by_key(|currency| currency.code);
        assert_eq!(codes.len(), listed);
    }
}
