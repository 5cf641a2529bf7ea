// Edits that nobody has saved yet, kept in this browser's IndexedDB by review, reviewer, tile and hash. Knows no page.

const DATABASE = "raytrain-review";
const STORE = "drafts";

function asked(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export class Drafts {
  constructor(reviewId) {
    this.reviewId = reviewId;
    const opening = indexedDB.open(DATABASE, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    this.database = asked(opening);
  }

  #key(reviewer, { tile_id, sha256 }) {
    return `${this.reviewId}/${reviewer}/${tile_id}/${sha256}`;
  }

  async #store(mode) {
    return (await this.database).transaction(STORE, mode, { durability: "strict" }).objectStore(STORE);
  }

  /** Return the mask kept of a tile, or null. */
  async read(reviewer, tile) {
    return (await asked((await this.#store("readonly")).get(this.#key(reviewer, tile)))) ?? null;
  }

  async keep(reviewer, tile, mask) {
    await asked((await this.#store("readwrite")).put(Uint8Array.from(mask), this.#key(reviewer, tile)));
  }

  async forget(reviewer, tile) {
    await asked((await this.#store("readwrite")).delete(this.#key(reviewer, tile)));
  }
}
