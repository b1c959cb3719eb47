/**
 * Server-sent events as the WHATWG HTML standard parses them (section 9.2.6): CR, LF and CRLF, comments, data of
 * several lines, and packets that end anywhere, even inside a character. `EventSource` can't send a POST.
 */
export class EventParser {
  #decoder = new TextDecoder();
  #line = "";
  #data = [];
  #afterCR = false;

  /** Take the stream's next bytes; return what they completed, each with `data` or `comment`. */
  push(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return [];
    const restOfCRLF = this.#afterCR && text[0] === "\n";
    this.#afterCR = text.endsWith("\r");
    if (restOfCRLF) text = text.slice(1);
    const lines = (this.#line + text).split(/\r\n|\r|\n/);
    this.#line = lines.pop();
    return lines.flatMap((line) => this.#read(line));
  }

  #read(line) {
    if (!line) return this.#data.length ? [{ data: this.#data.splice(0).join("\n") }] : [];
    const [, field, value] = /^([^:]*):? ?(.*)/s.exec(line);
    if (line[0] === ":") return [{ comment: value }];
    if (field === "data") this.#data.push(value);
    return [];
  }
}
