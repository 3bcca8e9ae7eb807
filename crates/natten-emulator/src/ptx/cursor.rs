//! A cursor over PTX text: skips white space and comments, reads words and numbers, knows the line.

use crate::fault::{ParseError, ParseProblem};

pub(crate) type Parsed<T> = Result<T, ParseError>;

pub(crate) struct Cursor<'a> {
    text: &'a str,
    pos: usize,
    line: u32,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, pos: 0, line: 1 }
    }

    pub(crate) fn line(&self) -> u32 {
        self.line
    }

    pub(crate) fn pos(&self) -> usize {
        self.pos
    }

    /// Text from `start` to here, white space normalised.
    pub(crate) fn since(&self, start: usize) -> String {
        let words: Vec<&str> = self.text[start..self.pos].split_whitespace().collect();
        words.join(" ")
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.pos).copied()
    }

    fn advance(&mut self) {
        if self.byte() == Some(b'\n') {
            self.line += 1;
        }
        self.pos += 1;
    }

    /// Skips to the next token.
    pub(crate) fn skip(&mut self) {
        loop {
            let rest = &self.text.as_bytes()[self.pos.min(self.text.len())..];
            if rest.starts_with(b"//") {
                self.skip_line();
            } else if rest.starts_with(b"/*") {
                while self.pos < self.text.len() && !self.text.as_bytes()[self.pos..].starts_with(b"*/") {
                    self.advance();
                }
                self.pos = (self.pos + 2).min(self.text.len());
            } else if rest.first().is_some_and(u8::is_ascii_whitespace) {
                self.advance();
            } else {
                return;
            }
        }
    }

    /// Skips the rest of this line.
    pub(crate) fn skip_line(&mut self) {
        while self.byte().is_some_and(|b| b != b'\n') {
            self.pos += 1;
        }
    }

    pub(crate) fn at_end(&mut self) -> bool {
        self.skip();
        self.pos >= self.text.len()
    }

    pub(crate) fn peek(&mut self) -> Option<u8> {
        self.skip();
        self.byte()
    }

    /// Takes `symbol` if it is next.
    pub(crate) fn eat(&mut self, symbol: u8) -> bool {
        let found = self.peek() == Some(symbol);
        if found {
            self.advance();
        }
        found
    }

    pub(crate) fn expect(&mut self, symbol: u8, expected: &'static str) -> Parsed<()> {
        if self.eat(symbol) { Ok(()) } else { Err(self.syntax(expected)) }
    }

    /// A syntax error here, quoting the rest of the line.
    pub(crate) fn syntax(&self, expected: &'static str) -> ParseError {
        let rest = self.text.get(self.pos..).unwrap_or("").lines().next().unwrap_or("");
        self.error(rest.trim().chars().take(80).collect(), ParseProblem::Syntax { expected })
    }

    pub(crate) fn error(&self, text: String, problem: ParseProblem) -> ParseError {
        ParseError { line: self.line, text, problem }
    }

    fn take_while(&mut self, keep: impl Fn(u8) -> bool) -> &'a str {
        let start = self.pos;
        while self.byte().is_some_and(&keep) {
            self.pos += 1;
        }
        &self.text[start..self.pos]
    }

    /// A name: letters, digits, `_`, `$`, `%`. Empty if none is next.
    pub(crate) fn name(&mut self) -> &'a str {
        self.skip();
        self.take_while(is_name)
    }

    /// A name that may contain dots and double colons: an opcode or `%tid.x`.
    pub(crate) fn dotted(&mut self) -> &'a str {
        self.skip();
        let start = self.pos;
        loop {
            self.take_while(is_name);
            let rest = &self.text.as_bytes()[self.pos..];
            let after = |n: usize| rest.get(n).copied().is_some_and(is_name);
            if rest.first() == Some(&b'.') && after(1) {
                self.pos += 1;
            } else if rest.starts_with(b"::") && after(2) {
                self.pos += 2;
            } else {
                return &self.text[start..self.pos];
            }
        }
    }

    /// A directive such as `.reg`, with its dot.
    pub(crate) fn directive(&mut self) -> &'a str {
        self.skip();
        let start = self.pos;
        if self.byte() == Some(b'.') {
            self.pos += 1;
            self.take_while(is_name);
        }
        &self.text[start..self.pos]
    }

    /// A quoted string.
    pub(crate) fn string(&mut self) -> Parsed<&'a str> {
        self.expect(b'"', "a string")?;
        let text = self.take_while(|b| b != b'"' && b != b'\n');
        self.expect(b'"', "the string's end")?;
        Ok(text)
    }

    /// An integer literal, with sign.
    pub(crate) fn integer(&mut self) -> Parsed<i64> {
        let negative = self.eat(b'-');
        let word = self.name();
        let value = parse_integer(word).ok_or_else(|| self.syntax("an integer"))?;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    /// An unsigned integer that fits 32 bits.
    pub(crate) fn count(&mut self) -> Parsed<u32> {
        let value = self.integer()?;
        u32::try_from(value).map_err(|_| self.syntax("a 32-bit count"))
    }

    /// Skips a balanced `{ ... }`.
    pub(crate) fn skip_braces(&mut self) -> Parsed<()> {
        self.expect(b'{', "`{`")?;
        let mut depth = 1;
        while depth > 0 {
            match self.peek() {
                None => return Err(self.syntax("`}`")),
                Some(b'{') => depth += 1,
                Some(b'}') => depth -= 1,
                Some(_) => {}
            }
            self.advance_char();
        }
        Ok(())
    }

    /// Skips through the next `;`.
    pub(crate) fn skip_statement(&mut self) {
        while let Some(byte) = self.peek() {
            self.advance_char();
            if byte == b';' {
                return;
            }
        }
    }

    /// Steps over one character, which may be longer than a byte.
    pub(crate) fn advance_char(&mut self) {
        self.advance();
        while !self.text.is_char_boundary(self.pos.min(self.text.len())) {
            self.pos += 1;
        }
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%')
}

/// Decimal, hexadecimal, octal or binary, with an optional `U` suffix.
pub(crate) fn parse_integer(word: &str) -> Option<i64> {
    let word = word.strip_suffix('U').unwrap_or(word);
    let value = if let Some(hex) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16).ok()?
    } else if let Some(bin) = word.strip_prefix("0b").or_else(|| word.strip_prefix("0B")) {
        u64::from_str_radix(bin, 2).ok()?
    } else if word.len() > 1 && word.starts_with('0') {
        u64::from_str_radix(&word[1..], 8).ok()?
    } else {
        word.parse().ok()?
    };
    Some(value as i64)
}
