// A certified OpenID provider as somebody else runs it: everything at its own defaults, but for what OIDC_* say.
import { Provider, errors } from 'oidc-provider';

const { OIDC_PORT, OIDC_RESOURCE, OIDC_CALLBACK, OIDC_SECRET } = process.env;
const scope = 'broker.review notes.write';
const clients = [
  { client_id: 'broker-console', client_secret: OIDC_SECRET, redirect_uris: [OIDC_CALLBACK],
    grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'] },
  { client_id: 'support-bot', client_secret: OIDC_SECRET, redirect_uris: [],
    grant_types: ['client_credentials'], response_types: [] },
];
const provider = new Provider(`http://127.0.0.1:${OIDC_PORT}`, {
  clients,
  scopes: ['openid', 'offline_access', ...scope.split(' ')],
  cookies: { keys: [OIDC_SECRET] },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  features: {
    clientCredentials: { enabled: true },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, indicator) => {
        if (indicator !== OIDC_RESOURCE) throw new errors.InvalidTarget();
        return { scope, audience: OIDC_RESOURCE, accessTokenFormat: 'jwt', accessTokenTTL: 600 };
      },
    },
  },
});
provider.listen(Number(OIDC_PORT), '127.0.0.1', () => console.log('ready'));
