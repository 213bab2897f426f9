//! The registry's wire format: a zero, the schema's id in four bytes, and for Protobuf the way to the message.

/// What a record's bytes begin with.
const MAGIC: u8 = 0;

/// A record's schema id, and what stands behind it.
pub(super) fn open(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let ([MAGIC, id @ ..], rest) = bytes.split_first_chunk::<5>()? else { return None };
    Some((u32::from_be_bytes(*id), rest))
}

/// A record of this schema.
pub(super) fn seal(id: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + body.len());
    out.push(MAGIC);
    out.extend(id.to_be_bytes());
    out.extend(body);
    out
}

/// A whole number as Avro and Confluent's message indexes have it: zig-zag, then seven bits a byte, the lowest first.
pub(super) fn push_long(out: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push(u8::try_from(rest & 0x7f).unwrap_or_default() | 0x80);
        rest >>= 7;
    }
    out.push(u8::try_from(rest).unwrap_or_default());
}

/// Reads one, and says what stands behind it.
pub(super) fn long(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if index == 9 && bits > 1 {
            return None;
        }
        number |= bits << (7 * index);
        if byte & 0x80 == 0 {
            let number = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
            return Some((number, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_come_back_and_broken_ones_do_not() {
        for number in [0, -1, 1, -64, 64, 300, i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            push_long(&mut out, number);
            assert_eq!(long(&out), Some((number, &[][..])));
            assert_eq!(long(&out[..out.len() - 1]), None);
        }
        assert_eq!(long(&[0xff; 11]), None);
        assert_eq!(long(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]), None);
    }

    #[test]
    fn the_id_stands_behind_a_zero() {
        assert_eq!(seal(258, b"x"), [0, 0, 0, 1, 2, b'x']);
        assert_eq!(open(&[0, 0, 0, 1, 2, b'x']), Some((258, &b"x"[..])));
        assert_eq!(open(&[1, 0, 0, 1, 2]), None);
        assert_eq!(open(&[0, 0, 0, 1]), None);
    }
}
