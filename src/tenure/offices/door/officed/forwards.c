/* Forwards: what the office can reach, each a port of its loopback spliced to a socket of the doorway. */
#include "officed.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct forward {
    struct sockaddr_in address;
    const char *socket_path;
    int listener;
};

struct forwarded {
    int client;
    const char *socket_path;
};

/* A server that is being restarted is a pause for the programs in the office, not an error. */
static int dial_patiently(const char *path) {
    int fd, wait = REDIAL_MS_MIN;
    for (int64_t until = now_ms() + FORWARD_PATIENCE_MS; (fd = dial_server(path)) < 0 && now_ms() < until;) {
        if (wait_while_drained()) until = now_ms() + FORWARD_PATIENCE_MS, wait = REDIAL_MS_MIN;
        sleep_ms(wait);
        wait = wait * 2 > REDIAL_MS_MAX ? REDIAL_MS_MAX : wait * 2;
    }
    return fd;
}

static void *run_forwarded(void *arg) {
    struct forwarded f = *(struct forwarded *)arg;
    free(arg);
    int one = 1, up = dial_patiently(f.socket_path);
    setsockopt(f.client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (up >= 0) pair_line(up, f.client), splice_both(f.client, up), hang_up(up);
    close(f.client);
    leave_session();
    return NULL;
}

static void *keep_forwarding(void *arg) {
    struct forward *f = arg;
    for (;;) {
        int client = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) {
            sleep_ms(10);
            continue;
        }
        struct forwarded *c = malloc(sizeof *c);
        if (c) c->client = client, c->socket_path = f->socket_path;
        int entered = c && enter_session();
        if (!entered || spawn_thread(run_forwarded, c)) {
            if (entered) leave_session();
            free(c), close(client);
        }
    }
    return NULL;
}

int start_forward(char *text) { /* ADDRESS:PORT=SOCKET */
    struct forward *f = calloc(1, sizeof *f);
    char host[64];
    unsigned port;
    int at = 0, one = 1;
    if (!f || sscanf(text, "%63[^:]:%u=%n", host, &port, &at) != 2 || !at) return -1;
    f->socket_path = text + at;
    f->address.sin_family = AF_INET, f->address.sin_port = htons((uint16_t)port);
    f->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(f->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (inet_pton(AF_INET, host, &f->address.sin_addr) != 1 || bind(f->listener, (void *)&f->address, sizeof f->address) ||
        listen(f->listener, 128))
        return -1;
    return spawn_thread(keep_forwarding, f);
}
