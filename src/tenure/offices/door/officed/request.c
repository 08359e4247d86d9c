/* Requests of the server, and those of sudo, as fields of one buffer. */
#include "officed.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

void free_request(struct request *r) {
    if (r) free(r->raw), free(r);
}

/* Fields become NUL-terminated strings in place: the byte after a field is the next tag, already read by then. */
struct request *read_request(int fd) {
    uint32_t be, n;
    if (read_all(fd, &be, 4)) return NULL;
    n = ntohl(be);
    if (n > REQUEST_BYTES_MAX) return NULL;
    struct request *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->raw = malloc(n + 1);
    if (!r->raw || read_all(fd, r->raw, n)) return free_request(r), NULL;
    r->raw[n] = 0;
    for (uint32_t i = 0; i + 5 <= n;) {
        char tag = r->raw[i];
        r->raw[i] = 0;
        memcpy(&be, r->raw + i + 1, 4);
        uint32_t len = ntohl(be);
        char *v = r->raw + i + 5;
        if (len > n - i - 5) return free_request(r), NULL;
        i += 5 + len;
        switch (tag) {
        case 'o': r->op = v; break;
        case 'k': r->key = v; break;
        case 'd': r->dir = v; break;
        case 'u': r->user = v; break;
        case 't': r->tty = v; break;
        case 'h': r->hosts = v; break;
        case 'a': if (r->argc < ARGS_MAX) r->argv[r->argc++] = v; break;
        case 'e': if (r->envc < ARGS_MAX) r->env[r->envc++] = v; break;
        /* numbers are parsed when all fields are terminated */
        case 'T': r->timeout_ms = v - r->raw; break;
        case 'w': r->wait_ms = v - r->raw; break;
        }
    }
    if (r->timeout_ms) r->timeout_ms = atoll(r->raw + r->timeout_ms);
    if (r->wait_ms) r->wait_ms = atoll(r->raw + r->wait_ms);
    if (!r->op) return free_request(r), NULL;
    return r;
}

int valid_key(const char *k) {
    size_t n = k ? strlen(k) : 0;
    if (!n || n > 128 || k[0] == '.') return 0;
    for (; *k; k++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:-", *k)) return 0;
    return 1;
}
